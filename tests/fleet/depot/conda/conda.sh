# Shell integration of the fixture installer (conda's own file is not in the wheel it was taken from).
# Sourced by login shells: defines the function `conda`, which can change the shell's environment.
export CONDA_EXE='@PREFIX@/bin/conda'
export CONDA_PYTHON_EXE='@PREFIX@/bin/python'
export CONDA_SHLVL="${CONDA_SHLVL:-0}"

conda() {
    case "${1:-}" in
        activate | deactivate)
            __conda_script="$("$CONDA_EXE" shell.posix "$@")" || return
            eval "$__conda_script"
            unset __conda_script
            hash -r
            ;;
        *)
            "$CONDA_EXE" "$@"
            ;;
    esac
}

case ":$PATH:" in
    *:'@PREFIX@/condabin':*) ;;
    *) export PATH='@PREFIX@/condabin':"$PATH" ;;
esac
