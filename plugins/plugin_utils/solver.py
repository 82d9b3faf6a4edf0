# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a node is and what its inventory asks for, one plan: driver, toolkit, Python, torch, precision per model.

Pure: the same request and tables give the same plan, byte for byte. The request is what C(solver_input.request) makes.
A pin of the inventory is a constraint: where nothing satisfies it, the plan keeps the pin and gains a conflict.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import estimator, solver_rules
from ansible_collections.gpufleet.llm.plugins.plugin_utils import tables as tables_module
from ansible_collections.gpufleet.llm.plugins.plugin_utils.solver_rules import Card, Driver, Violation
from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import Row, Tables, release, version

SCHEMA = 1
# "unpinned": what a bare `pip install torch` takes today, by the tables. A pin like any other, mostly an unhappy one.
UNPINNED = "unpinned"

PINS: dict[str, str] = {
    "accelerator": "cuda or cpu; cpu plans for the processor although there is a card",
    "compute_capability": "compute capability of cards that the tables do not know, for example '7.5'",
    "cuda_toolkit": "a toolkit such as '12.0.1' or '12.0' (its newest update), or 'none'",
    "driver_branch": "a driver branch such as 580",
    "driver_flavour": "open or proprietary",
    "driver_method": "how the driver comes: auto, distribution, nvidia_repo, runfile, or none (it is not ours to install)",
    "driver_version": "an exact driver version such as '525.85.05'",
    "forward_compatibility": "true: a cuda-compat package may lift an old driver on data-centre cards",
    "models": "per model: precision, torch, torch_variant, torch_index, python (before the node's own pins)",
    "precision": "a precision for every model",
    "python": "a Python such as '3.11', in quotes",
    "torch": "a torch version such as '2.1.2', '2.1.2+cu121', '2.1' (its newest patch), or 'unpinned'",
    "torch_index": "pypi (the Python index or a mirror of it) or pytorch (the PyTorch index)",
    "torch_variant": "a variant of the PyTorch index such as cu126, or cpu",
}
ENVIRONMENT_KEYS = ("torch", "torch_variant", "torch_index", "python")
MODEL_PINS = ("precision", "python", "torch", "torch_index", "torch_variant")
METHODS = ("auto", "distribution", "nvidia_repo", "runfile", "none")


@dataclasses.dataclass(frozen=True)
class Environment:
    """What one Python environment asks for; empty strings leave it to the solver."""

    name: str
    torch: str = ""
    variant: str = ""
    index: str = ""
    python: str = ""
    cpu: bool = False


@dataclasses.dataclass(frozen=True)
class Build:
    """One torch wheel, and the rules that keep it off this node."""

    row: Row
    index: str
    variant: str
    python: str
    glibc: str
    code: tuple[str, ...]
    violations: tuple[Violation, ...]

    @property
    def torch(self) -> str:
        """C(2.1.2)."""
        return str(self.row["torch"])

    @property
    def cuda(self) -> str | None:
        """C(12.1), or nothing for the CPU."""
        return None if self.variant == "cpu" else tables_module.variant_cuda(self.variant)

    @property
    def label(self) -> str:
        """C(torch 2.1.2 (cu121, pypi))."""
        return f"torch {self.torch} ({self.variant}, {self.index})"

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"torch=={self.torch}+{self.variant}" if self.index == "pytorch" else f"torch=={self.torch}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A driver and what it means for the node."""

    driver: Driver
    violations: tuple[Violation, ...]
    builds: Mapping[str, Build | None]
    compat: Mapping[str, bool]

    @property
    def faults(self) -> int:
        """Rules broken by the driver, and environments without a wheel."""
        return len(self.violations) + sum(1 for b in self.builds.values() if b is None or b.violations)


def solve(request: Mapping[str, Any], tables: Tables | None = None) -> dict[str, Any]:
    """The plan of a node; see docs/explanation/solver.md for its keys."""
    return _Solver(request, tables or tables_module.load()).solve()


class _Solver:
    """One run; collects reasons, conflicts and warnings in the order in which they come up."""

    def __init__(self, request: Mapping[str, Any], tables: Tables) -> None:
        self.request = request
        self.tables = tables
        self.reasons: list[dict[str, Any]] = []
        self.conflicts: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        self.pins = self._pins(request.get("pins") or {})
        self.models: list[Mapping[str, Any]] = list(request.get("models") or [])
        self.system = str(request.get("system") or "Linux")
        self.os: Mapping[str, Any] = request.get("os") or {}
        self.machine = str(self.os.get("machine") or "x86_64")
        self.cards: list[Card] = []

    # -- what is said ------------------------------------------------------------------------------------------------

    def _because(self, choice: str, because: str, rule: str, table: str = "", row: Row | None = None) -> None:
        source = self.tables.source(table, row) if row is not None else "the inventory and the node's facts"
        self.reasons.append({"choice": choice, "because": because, "rule": rule, "source": source})

    def _conflict(self, violation: Violation, remedy: str) -> None:
        entry = {"rule": violation.rule, "found": violation.found, "wanted": violation.wanted, "remedy": remedy}
        if entry not in self.conflicts:
            self.conflicts.append(entry)

    def _warn(self, rule: str, message: str) -> None:
        entry = {"rule": rule, "message": message}
        if entry not in self.warnings:
            self.warnings.append(entry)

    # -- pins --------------------------------------------------------------------------------------------------------

    def _pins(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        pins: dict[str, Any] = {}
        for key in sorted(raw):
            value = raw[key]
            if key not in PINS:
                known = solver_rules.text_list(sorted(PINS))
                self._conflict(
                    Violation("pin-understood", f"gpufleet_pins.{key}", f"one of {known}"), "Remove or rename it."
                )
            elif value is None or value == "":
                continue
            elif key == "models":
                pins[key] = {name: self._model_pins(name, entry) for name, entry in dict(value).items()}
            elif key == "forward_compatibility":
                pins[key] = str(value).lower() in ("true", "yes", "1")
            else:
                pins[key] = self._pin_text(key, value)
        allowed = {
            "driver_method": METHODS,
            "driver_flavour": ("open", "proprietary"),
            "torch_index": ("pypi", "pytorch"),
        }
        for key, values in {**allowed, "accelerator": ("cuda", "cpu")}.items():
            if key in pins and pins[key] not in values:
                wanted = solver_rules.text_list(values)
                self._conflict(
                    Violation("pin-understood", f"gpufleet_pins.{key}: {pins[key]}", wanted), f"Set it to {wanted}."
                )
        return pins

    def _model_pins(self, model: str, raw: Mapping[str, Any]) -> dict[str, str]:
        for key in sorted(set(raw) - set(MODEL_PINS)):
            known = solver_rules.text_list(MODEL_PINS)
            self._conflict(
                Violation("pin-understood", f"gpufleet_pins.models.{model}.{key}", f"one of {known}"),
                "Remove or rename it.",
            )
        return {
            key: self._pin_text(key, value)
            for key, value in raw.items()
            if key in MODEL_PINS and value not in (None, "")
        }

    def _pin_text(self, key: str, value: Any) -> str:
        text = str(value).strip()
        if key == "precision":
            text = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(text, text)
        if isinstance(value, float):
            # YAML reads 3.10 as 3.1 and 2.10 as 2.1: nobody can tell any more what was meant.
            self._conflict(
                Violation("pin-understood", f"gpufleet_pins.{key}: {text} (a number)", "a version as text"),
                f"Put it in quotes in the inventory, for example {key}: '3.10' (YAML reads a bare 3.10 as 3.1).",
            )
        numbered = ("cuda_toolkit", "compute_capability", "driver_branch", "driver_version", "python", "torch")
        if key in numbered and not re.search(r"\d", text) and text not in ("none", UNPINNED):
            self._conflict(Violation("pin-understood", f"gpufleet_pins.{key}: {text}", "a version"), "Correct the pin.")
        return text

    # -- cards -------------------------------------------------------------------------------------------------------

    def _read_cards(self) -> None:
        for entry in self.request.get("gpus") or []:
            device = str(entry.get("pci_device") or "").lower()
            known = self.tables.device(device)
            chip_name = str(entry.get("chip") or (known["chip"] if known else ""))
            chip = self.tables.chip(chip_name) if chip_name else None
            label = str(entry.get("name") or (known["name"] if known else "") or f"NVIDIA device {device or 'unknown'}")
            pinned = self.pins.get("compute_capability")
            own = entry.get("compute_capability")
            possible: tuple[str, ...] = ()
            if own and self.tables.architecture(str(own)) is not None:
                possible = (str(own),)
            elif chip is not None:
                possible = (str(chip["compute_capability"]),)
                self._because(
                    f"{label}: compute capability {possible[0]}", f"chip {chip_name}", "card-known", "chips", chip
                )
            elif pinned and self.tables.architecture(pinned) is not None:
                possible = (pinned,)
                self._because(f"{label}: compute capability {pinned}", "the inventory says so", "card-known")
            elif (bounds := self.tables.device_range(device)) is not None:
                possible = tuple(bounds["possible"])
                self._because(
                    f"{label}: {bounds['name']}",
                    f"only the range of PCI device id {device} is known",
                    "card-known",
                    "chips",
                    bounds,
                )
                self._warn("card-known", f"{label}: only the generation is known; the choice serves all of it")
            else:
                self._conflict(
                    Violation("card-known", f"{label} (PCI device {device or 'unknown'})", "a compute capability"),
                    "Set gpufleet_pins.compute_capability, or add the device to the table chips.yml.",
                )
            if known is not None and known["market"]:
                datacenter = known["market"] == "datacenter"
            else:
                datacenter = bool(re.match(r"(NVIDIA )?(Tesla|[AHBLP]\d{2,3}\b|GH\d|GB\d)", label))
            total, nominal = entry.get("memory_total_bytes"), False
            if total is None and known is not None:
                total, nominal = int(known["memory_gib"]) * 2**30, True
            free = entry.get("memory_free_bytes")
            self.cards.append(Card(label, possible, datacenter, total, free, nominal))

    # -- the run -----------------------------------------------------------------------------------------------------

    def solve(self) -> dict[str, Any]:
        """Decide in the order in which one thing depends on another."""
        self._read_cards()
        cuda = bool(self.cards) and self.pins.get("accelerator") != "cpu"
        if self.pins.get("accelerator") == "cuda" and not self.cards:
            self._conflict(
                Violation("gpu-required", "no NVIDIA card", "a card (gpufleet_pins.accelerator: cuda)"),
                "Add a card, or set gpufleet_pins.accelerator to cpu.",
            )
        for note in self.request.get("notes") or []:
            self._warn("gpu-state", str(note))
        environments = self._environments(cuda)
        trial: Trial | None = None
        builds: Mapping[str, Build | None]
        if cuda:
            trial = self._choose_driver(environments)
            builds = trial.builds
        else:
            because = "there is no NVIDIA card" if not self.cards else "the inventory says so"
            self._because("processor", because, "gpu-required")
            builds = {e.name: self._choose_build(e, None) for e in environments}
        driver = trial.driver if trial else None
        for environment in environments:
            self._explain_build(environment, builds[environment.name], None if environment.cpu else driver)
        toolkit = self._toolkit(driver, builds) if cuda else self._toolkit_without_card()
        on_card = {e.name: cuda and not e.cpu for e in environments}
        models = [
            self._fit(model, builds[name], on_card[name])
            for model, name in ((m, self._environment_name(m)) for m in self.models)
        ]
        self._together([m for m in models if m["device"] == "cuda"], True)
        self._together([m for m in models if m["device"] == "cpu"], False)
        download, disk = self._bytes(trial, toolkit, builds, models)
        base = builds.get("") or next((b for b in builds.values() if b is not None), None)
        return {
            "schema": SCHEMA,
            "tables_as_of": str(self.tables.drivers["as_of"]),
            "node": str(self.request.get("node") or ""),
            "ok": not self.conflicts,
            "accelerator": "cuda" if cuda else "cpu",
            "gpus": [self._card_out(card) for card in self.cards],
            "driver": self._driver_out(trial),
            "cuda_toolkit": toolkit,
            "python": base.python if base else self.pins.get("python"),
            "torch": self._build_out(base, trial, environments[0]),
            "models": models,
            "download_bytes": download["total_bytes"],
            "download": download,
            "disk_needed_bytes": disk["total_bytes"],
            "disk": disk,
            "pins": self.pins,
            "reasons": self.reasons,
            "conflicts": self.conflicts,
            "warnings": self.warnings,
        }

    # -- environments ------------------------------------------------------------------------------------------------

    def _environment_name(self, model: Mapping[str, Any]) -> str:
        return str(model["name"])

    def _environments(self, cuda: bool) -> list[Environment]:
        """One per model; without a model one that holds what the inventory pins."""
        if not self.models:
            return [self._environment("", {}, {}, cuda)]
        own = self.pins.get("models") or {}
        return [self._environment(self._environment_name(m), m, own.get(m["name"]) or {}, cuda) for m in self.models]

    def _environment(self, name: str, model: Mapping[str, Any], own: Mapping[str, str], cuda: bool) -> Environment:
        """What the inventory pins and the model's own lock says; a conflict where they differ."""
        pinned = {key: own.get(key) or self.pins.get(key) or "" for key in ENVIRONMENT_KEYS}
        locked = {key: str(model.get(key) or "") for key in ENVIRONMENT_KEYS}
        for values in (pinned, locked):
            if "+" in values["torch"]:
                values["torch"], _plus, values["torch_variant"] = values["torch"].partition("+")
                values["torch_index"] = values["torch_index"] or "pytorch"
        for key in ENVIRONMENT_KEYS:
            mine, theirs = pinned[key], locked[key]
            supported = [str(p) for p in model.get("pythons") or []] if key == "python" else []
            if mine and theirs and not _same(mine, theirs) and mine not in supported:
                self._conflict(
                    Violation(
                        "pins-hold", f"{key} {mine} pinned by the inventory", f"{key} {theirs} of {name}'s own lock"
                    ),
                    f"Remove the pin of {key}, or make it {theirs} for this model (gpufleet_pins.models.{name}.{key}).",
                )
        values = {key: pinned[key] or locked[key] for key in ENVIRONMENT_KEYS}
        if pinned["torch"] and locked["torch"] and _same(pinned["torch"], locked["torch"]):
            values["torch"] = locked["torch"]
        cpu = not cuda or values["torch_variant"] == "cpu" or model.get("device") == "cpu"
        if cuda and cpu and model.get("device") != "cpu" and model:
            self._warn("arch-coverage", f"{name} runs on the processor: its torch is a CPU wheel, by its lock or a pin")
        return Environment(name, values["torch"], values["torch_variant"], values["torch_index"], values["python"], cpu)

    # -- torch -------------------------------------------------------------------------------------------------------

    def _candidates(self, environment: Environment, driver: Driver | None) -> Iterator[Build]:
        """Wheels that an environment may mean, the preferred first: newest release, then the Python index, then CUDA."""
        rows: Sequence[Row] = self.tables.torch_releases
        if environment.torch == UNPINNED:
            rows = [r for r in rows if not environment.python or environment.python in r["pythons"]][:1]
        elif environment.torch:
            rows = [r for r in rows if _same(environment.torch, r["torch"])]
        for row in rows:
            for option in self._options(row, environment, driver):
                yield self._judge(row, option, environment, driver)

    def _options(self, row: Row, environment: Environment, driver: Driver | None) -> list[tuple[str, str, str]]:
        python_index = ("pypi", tables_module.cuda_variant(row["pypi_cuda"]), str(row["pypi_glibc"]))
        if driver is None and environment.variant in ("", "cpu"):
            own = [("pytorch", "cpu", str(row["pypi_glibc"])), python_index]
        elif environment.torch == UNPINNED:
            own = [python_index]
        else:
            variants = [
                ("pytorch", str(v["variant"]), str(v["glibc"])) for v in self.tables.torch_variants(row["torch"])
            ]
            if environment.variant == "cpu":
                variants.append(("pytorch", "cpu", str(row["pypi_glibc"])))
            twin = [v for v in variants if v[1] == python_index[1]]
            others = [v for v in variants if v[1] != python_index[1]]
            own = [*twin, *others, python_index] if environment.variant else [python_index, *twin, *others]
        return [
            option for option in own if environment.index in ("", option[0]) and environment.variant in ("", option[1])
        ]

    def _judge(self, row: Row, option: tuple[str, str, str], environment: Environment, driver: Driver | None) -> Build:
        index, variant, glibc = option
        found: list[Violation] = []
        label = f"torch {row['torch']} ({variant}, {index})"
        python = environment.python or next(
            (p for p in self.tables.torch["python_preference"] if p in row["pythons"]), str(row["pythons"][-1])
        )
        if python not in row["pythons"]:
            wanted = f"{row['pythons'][0]} to {row['pythons'][-1]} for {label}"
            found.append(Violation("wheel-python", f"Python {python}", wanted))
        node_glibc = self.os.get("glibc")
        if node_glibc and version(node_glibc) < version(glibc) and self.system == "Linux":
            found.append(Violation("wheel-glibc", f"glibc {node_glibc}", f"glibc {glibc} or newer for {label}"))
        code: list[str] = []
        if driver is not None and variant != "cpu":
            found += self._judge_card(row, index, variant, driver, code)
        elif driver is not None:
            found.append(Violation("arch-coverage", label, "a wheel with code for the card"))
        return Build(row, index, variant, python, glibc, tuple(code), tuple(found))

    def _judge_card(self, row: Row, index: str, variant: str, driver: Driver, code: list[str]) -> Iterator[Violation]:
        label = f"torch {row['torch']} ({variant}, {index})"
        cuda = tables_module.variant_cuda(variant)
        if self.system == "Windows" and index == "pypi":
            yield Violation(
                "wheel-windows", label, "a wheel of the PyTorch index (the Python index has CPU wheels only)"
            )
        compiled = self.tables.arch_list(variant, row["torch"], self.machine)
        if self.machine != "x86_64" and index == "pypi":
            # What the Python index carries for other machines is not in the tables (long it was CPU wheels).
            compiled = None
        if compiled is None:
            yield Violation("wheel-exists", f"{label} for {self.machine}", "a wheel whose GPU code the tables know")
            return
        lifted = self._compat(driver, cuda)
        for card in self.cards:
            for cc in card.possible:
                how = solver_rules.covers(cc, compiled["arch"], compiled["ptx"])
                if how is None:
                    yield Violation(
                        "arch-coverage",
                        f"{card.label} (compute capability {cc})",
                        f"one of {', '.join(compiled['arch'])}{' +PTX' if compiled['ptx'] else ''}, the code in {label}",
                    )
                    break
                if (
                    how.endswith("PTX")
                    and not lifted
                    and (driver.cuda_api is None or version(driver.cuda_api) < version(cuda))
                ):
                    yield Violation(
                        "arch-coverage",
                        f"driver {driver.label} (CUDA {driver.cuda_api})",
                        f"CUDA {cuda} or newer, to compile the PTX of {label} for {card.label}",
                    )
                    break
                if how not in code:
                    code.append(how)
        broken = solver_rules.check_floor(self.tables, driver, cuda, label)
        if broken is not None and not lifted:
            yield broken

    def _compat(self, driver: Driver, cuda: str) -> bool:
        """Whether C(cuda-compat) is allowed, needed and possible for a CUDA version."""
        if not self.pins.get("forward_compatibility"):
            return False
        if solver_rules.check_floor(self.tables, driver, cuda, "") is None:
            return False
        return solver_rules.forward_compatible(self.tables, driver, self.cards, cuda) is None

    def _choose_build(self, environment: Environment, driver: Driver | None) -> Build | None:
        """The first wheel that breaks no rule, else the first of all (with what is wrong), else nothing."""
        first: Build | None = None
        for build in self._candidates(environment, None if environment.cpu else driver):
            if not build.violations:
                return build
            first = first or build
        return first

    def _explain_build(self, environment: Environment, build: Build | None, driver: Driver | None) -> None:
        for_whom = f" for {environment.name}" if environment.name else ""
        if build is None:
            asked = "+".join(x for x in (environment.torch or "any", environment.variant) if x)
            self._conflict(
                Violation(
                    "pin-understood",
                    f"torch {asked} from {environment.index or 'any index'}{for_whom}",
                    "a wheel in the tables",
                ),
                self._torch_remedy(environment, None, driver)
                or "Correct the pin, or run tools/update_tables.py for a newer release.",
            )
            return
        if build.violations:
            remedy = self._torch_remedy(environment, build, driver)
            for violation in build.violations:
                self._conflict(violation, remedy)
            return
        asked_for = [f"{k} {v}" for k, v in (("torch", environment.torch), ("variant", environment.variant)) if v]
        because = (
            f"asked for: {', '.join(asked_for)}" if asked_for else "the newest release whose wheel breaks no rule here"
        )
        if driver is not None and build.cuda:
            because += (
                f"; code {', '.join(build.code)} serves the card, CUDA {build.cuda} runs on driver {driver.label}"
            )
        self._because(f"{build.label}, Python {build.python}{for_whom}", because, "wheel-exists", "torch", build.row)
        if driver is not None and build.cuda:
            compiled = self.tables.arch_list(build.variant, build.torch, self.machine)
            if compiled is not None:
                self._because(
                    f"{build.variant}{for_whom}",
                    f"compiled for {', '.join(compiled['arch'])}",
                    "arch-coverage",
                    "torch",
                    compiled,
                )
            floor = solver_rules.mvc_floor(self.tables, build.cuda, self.system)
            if floor is not None:
                self._because(
                    f"driver {floor[0]} or newer{for_whom}", f"CUDA {build.cuda}", "mvc-floor", "drivers", floor[1]
                )
        if not self.os.get("glibc") and self.system == "Linux":
            self._warn("wheel-glibc", f"the C library of the node is not known; the wheel needs glibc {build.glibc}")

    def _torch_remedy(self, environment: Environment, build: Build | None, driver: Driver | None) -> str:
        """What would work instead, best first: another variant, another driver, another release."""
        ways: list[str] = []
        if environment.torch and environment.torch != UNPINNED:
            freed = dataclasses.replace(environment, variant="", index="")
            other = self._choose_build(freed, driver)
            if other is not None and not other.violations:
                ways.append(f"take {other.requirement} from the {_index_name(other.index)}")
        elif environment.variant or environment.index:
            other = self._choose_build(dataclasses.replace(environment, torch=""), driver)
            if other is not None and not other.violations:
                ways.append(f"pin {other.requirement} from the {_index_name(other.index)}")
        if (
            driver is not None
            and build is not None
            and any(v.rule == "mvc-floor" for v in build.violations)
            and build.cuda
        ):
            floor = solver_rules.mvc_floor(self.tables, build.cuda, self.system)
            _first, last = solver_rules.branch_interval(self.tables, self.cards)
            if floor is not None and (last is None or version(floor[0])[0] <= last):
                ways.append(
                    f"install driver {floor[0]} or newer (branch {max(version(floor[0])[0], self.tables.default_branch)})"
                )
            if solver_rules.forward_compatible(self.tables, driver, self.cards, build.cuda) is None:
                ways.append("set gpufleet_pins.forward_compatibility to true (package cuda-compat, data-centre cards)")
        if build is not None and any(v.rule == "wheel-python" for v in build.violations):
            ways.append(f"use Python {build.row['pythons'][0]} to {build.row['pythons'][-1]}")
        free = self._choose_build(Environment(environment.name, python=environment.python, cpu=environment.cpu), driver)
        if free is not None and not free.violations:
            way = f"take {free.requirement} from the {_index_name(free.index)}"
            if not any(free.requirement in w for w in ways):
                ways.append(way)
        text = ", or ".join(ways)
        return (
            text[:1].upper() + text[1:] + "."
            if text
            else "No wheel in the tables serves this node: use another card, or the CPU."
        )

    # -- driver ------------------------------------------------------------------------------------------------------

    def _installed(self) -> Driver | None:
        entry = self.request.get("driver") or {}
        if not entry.get("version"):
            return None
        branch = version(entry["version"])[0]
        api = entry.get("cuda_api") or self.tables.cuda_api(branch)
        return Driver(branch, str(entry["version"]), str(entry.get("flavour") or ""), "keep", api, self.system)

    def _driver_candidates(self) -> list[Driver]:
        """Drivers worth trying, the one that changes least first; exactly one when the inventory pins it."""
        installed = self._installed()
        method = self.pins.get("driver_method", "auto")
        if self.system == "Windows":
            # The collection does not install drivers on Windows: what is there is what the plan must live with.
            return [installed] if installed else [self._new(self.tables.default_branch, None, installed)]
        wanted = self.pins.get("driver_version") or ""
        branch_pin = self.pins.get("driver_branch") or ""
        if wanted and re.search(r"\d", wanted):
            branch = version(wanted)[0]
            if branch_pin and (not branch_pin.isdigit() or int(branch_pin) != branch):
                self._conflict(
                    Violation(
                        "pins-hold", f"driver_branch {branch_pin} and driver_version {wanted}", "pins that agree"
                    ),
                    "Remove one of the two pins.",
                )
            if installed and installed.version == wanted:
                return [installed]
            return [self._new(branch, wanted, installed)]
        if branch_pin.isdigit():
            if installed and installed.branch == int(branch_pin):
                return [installed, self._new(int(branch_pin), None, installed)]
            return [self._new(int(branch_pin), None, installed)]
        if method == "none" and installed:
            return [installed]
        first, last = solver_rules.branch_interval(self.tables, self.cards)
        target = self.tables.default_branch
        if last is not None:
            target = min(target, last)
        if target < first:
            newer = [
                r["branch"]
                for r in self.tables.drivers["branches"]
                if r["branch"] >= first and r["status"] == "supported"
            ]
            target = min(newer, default=first)
        fresh = self._new(target, None, installed)
        return [installed, fresh] if installed else [fresh]

    def _releases(self, branch: int) -> list[Row]:
        """The rows of a branch's releases, whose checksums are known."""
        return [r for r in self.tables.drivers["releases"] if version(r["version"])[0] == branch]

    def _new(self, branch: int, wanted: str | None, installed: Driver | None) -> Driver:
        action = "install"
        if wanted is None and self.pins.get("driver_method") == "runfile":
            # A runfile has one version: the newest of the branch whose checksum is known.
            wanted = max((r["version"] for r in self._releases(branch)), key=version, default=None)
        if installed is not None:
            here = version(installed.version or installed.branch)
            # A branch without a version stands for its newest release.
            newer = here < version(wanted) if wanted else here[0] <= branch
            action = "upgrade" if newer else "downgrade"
        return Driver(branch, wanted, "", action, self.tables.cuda_api(branch), self.system)

    def _with_flavour(self, driver: Driver) -> tuple[Driver, Violation | None]:
        """The flavour that the pin, the cards and the branch allow."""
        cards = solver_rules.module_flavours(self.tables, self.cards)
        shipped = solver_rules.branch_flavours(self.tables, driver.branch)
        pinned = self.pins.get("driver_flavour")
        fitting = [f for f in shipped if f in cards]
        if pinned:
            action = driver.action
            if driver.action == "keep" and driver.flavour and driver.flavour != pinned:
                action = "reinstall"
            chosen = dataclasses.replace(driver, flavour=pinned, action=action)
            if pinned in fitting or self.system == "Windows":
                return chosen, None
            names = ", ".join(card.label for card in self.cards)
            wanted = solver_rules.text_list(fitting) if fitting else "no flavour at all"
            return chosen, Violation(
                "module-flavour", f"{pinned} modules", f"{wanted} for {names} with branch {driver.branch}"
            )
        if driver.action == "keep" and (driver.flavour in cards if driver.flavour else fitting):
            return dataclasses.replace(driver, flavour=driver.flavour or fitting[0]), None
        if fitting:
            action = "reinstall" if driver.action == "keep" else driver.action
            return dataclasses.replace(driver, flavour=fitting[0], action=action), None
        names = ", ".join(f"{card.label} ({'/'.join(card.possible)})" for card in self.cards)
        rule = "module-flavour" if cards else "one-driver-for-all-cards"
        wanted = f"{solver_rules.text_list(cards)} modules" if cards else "one flavour that drives all of them"
        return dataclasses.replace(driver, flavour=shipped[0]), Violation(
            rule, f"branch {driver.branch} for {names}", wanted
        )

    def _try(self, candidate: Driver, environments: Sequence[Environment]) -> Trial:
        driver, flavour_fault = self._with_flavour(candidate)
        found: list[Violation] = [flavour_fault] if flavour_fault else []
        if self.system == "Linux":
            first, last = solver_rules.branch_interval(self.tables, self.cards)
            names = ", ".join(f"{card.label} ({'/'.join(card.possible)})" for card in self.cards)
            if last is not None and first > last:
                found.append(
                    Violation(
                        "one-driver-for-all-cards", names, f"one branch that is {first} or newer and {last} or older"
                    )
                )
            elif driver.branch < first:
                found.append(
                    Violation("driver-drives-card", f"driver {driver.label}", f"branch {first} or newer for {names}")
                )
            elif last is not None and driver.branch > last:
                found.append(
                    Violation("driver-drives-card", f"driver {driver.label}", f"branch {last} or older for {names}")
                )
            running = bool((self.request.get("driver") or {}).get("loaded"))
            limit = solver_rules.kernel_limit(self.tables, driver, str(self.os.get("kernel") or ""))
            if limit is not None and not (driver.action == "keep" and running):
                why = limit[0]["why"]
                found.append(
                    Violation(
                        "kernel-limit",
                        f"kernel {self.os.get('kernel')} with driver {driver.label}",
                        f"{limit[1]} ({why})",
                    )
                )
            if driver.action != "keep" and self.pins.get("driver_method") == "none":
                found.append(
                    Violation(
                        "driver-present",
                        f"driver {(self._installed() or driver).label if self._installed() else 'not installed'}",
                        f"driver {driver.label} (gpufleet_pins.driver_method is none)",
                    )
                )
        builds = {e.name: self._choose_build(e, driver) for e in environments}
        compat = {name: bool(b and b.cuda and self._compat(driver, b.cuda)) for name, b in builds.items()}
        return Trial(driver, tuple(found), builds, compat)

    def _choose_driver(self, environments: Sequence[Environment]) -> Trial:
        trials = [self._try(candidate, environments) for candidate in self._driver_candidates()]
        trial = next((t for t in trials if not t.faults), None) or min(reversed(trials), key=lambda t: t.faults)
        driver = trial.driver
        for violation in trial.violations:
            self._conflict(violation, self._driver_remedy(violation))
        row = self.tables.branch(driver.branch)
        pinned = [k for k in ("driver_version", "driver_branch") if self.pins.get(k)]
        if pinned:
            because = f"pinned by the inventory ({', '.join(pinned)})"
        elif driver.action in ("keep", "reinstall"):
            because = "it is installed and nothing that is wanted needs another"
        elif len(trials) > 1:
            because = f"the installed driver {trials[0].driver.label} does not do: {self._why_not(trials[0])}"
        else:
            because = (
                "the default of a fleet"
                if driver.branch == self.tables.default_branch
                else "the newest that knows the cards"
            )
        self._because(f"driver {driver.label}: {driver.action}", because, "driver-drives-card", "drivers", row)
        for card in self.cards:
            architecture = self.tables.architecture(card.possible[0]) if card.possible else None
            if architecture is not None and self.system == "Linux":
                end = architecture["last_branch"]
                flavours = " or ".join(architecture["module_flavours"])
                kind = f"{card.label} is {architecture['architecture']}"
                self._because(
                    f"{driver.flavour} modules",
                    f"{kind}: {flavours}, last branch {end or 'none yet'}",
                    "module-flavour",
                    "architectures",
                    architecture,
                )
        if row is None and self.system == "Linux":
            self._warn(
                "driver-branch-status", f"branch {driver.branch} is not in the tables of {self.tables.drivers['as_of']}"
            )
        elif row is not None and row["status"] == "ended" and self.system == "Linux":
            end = "" if row["end_of_support"] in (None, "ended") else f" ({row['end_of_support']})"
            better = self.tables.default_branch
            _first, last = solver_rules.branch_interval(self.tables, self.cards)
            advice = f"; branch {better} is supported and drives these cards" if last is None or better <= last else ""
            self._warn("driver-branch-status", f"support of driver branch {driver.branch} has ended{end}{advice}")
        for warning in self.tables.drivers["kernel_warnings"]:
            kernel = solver_rules.kernel_version(str(self.os.get("kernel") or ""))
            if (
                driver.action != "keep"
                and driver.branch == warning["branch"]
                and driver.version
                and kernel
                and version(driver.version) <= version(warning["up_to"])
                and kernel >= version(warning["kernel_from"])
                and self.os.get("distribution") == warning["distribution"]
            ):
                self._warn("kernel-limit", f"{warning['why']}: {warning['remedy']}")
        return trial

    def _why_not(self, trial: Trial) -> str:
        found = list(trial.violations)
        for build in trial.builds.values():
            found += build.violations if build else ()
        return "; ".join(f"{v.rule}: found {v.found}, wanted {v.wanted}" for v in found[:2]) or "no wheel fits"

    def _driver_remedy(self, violation: Violation) -> str:
        first, last = solver_rules.branch_interval(self.tables, self.cards)
        if violation.rule == "one-driver-for-all-cards":
            return "No driver drives all these cards at once: move them to different nodes."
        if violation.rule == "module-flavour":
            flavours = solver_rules.module_flavours(self.tables, self.cards)
            return f"Set gpufleet_pins.driver_flavour to {solver_rules.text_list(flavours)}, or remove the pin."
        target = self.tables.default_branch if last is None else min(last, self.tables.default_branch)
        target = max(target, first)
        if violation.rule == "kernel-limit":
            return f"Use branch {target}, or boot {violation.wanted.partition(' (')[0]}."
        if violation.rule == "driver-present":
            return "Install that driver by your own means, or let the collection do it (gpufleet_pins.driver_method: auto)."
        return f"Use branch {target}: it drives these cards."

    # -- toolkit -----------------------------------------------------------------------------------------------------

    def _toolkit_without_card(self) -> dict[str, Any]:
        pinned = self.pins.get("cuda_toolkit")
        if pinned in (None, "none"):
            return {"version": None, "needed": False}
        row = self.tables.toolkit(pinned)
        if row is None:
            self._conflict(
                Violation("pin-understood", f"cuda_toolkit {pinned}", "a toolkit in the tables"), "Correct the pin."
            )
        return {"version": str(row["cuda"]) if row else pinned, "needed": True}

    def _toolkit(self, driver: Driver | None, builds: Mapping[str, Build | None]) -> dict[str, Any]:
        pinned = self.pins.get("cuda_toolkit")
        compiling = [m for m in self.models if m.get("needs_nvcc")]
        if pinned is None and not compiling:
            self._because(
                "no CUDA toolkit", "running a model needs none: the wheels carry their own CUDA", "toolkit-architecture"
            )
            return {"version": None, "needed": False}
        if pinned == "none":
            self._because("no CUDA toolkit", "the inventory says so", "pins-hold")
            return {"version": None, "needed": False}
        wanted = pinned
        if wanted is None:
            build = builds[self._environment_name(compiling[0])]
            wanted = build.cuda if build and build.cuda else "12.9"
        row = self.tables.toolkit(wanted)
        if row is None:
            self._conflict(
                Violation("pin-understood", f"cuda_toolkit {wanted}", "a toolkit in the tables"),
                "Correct the pin, or run tools/update_tables.py for a newer toolkit.",
            )
            return {"version": wanted, "needed": True}
        for card in self.cards:
            for cc in card.possible:
                self._toolkit_card(row, card, cc)
        if driver is not None:
            broken = solver_rules.check_floor(self.tables, driver, row["cuda"], f"the CUDA toolkit {row['cuda']}")
            floor = solver_rules.mvc_floor(self.tables, row["cuda"], self.system)
            if broken is not None:
                _first, last = solver_rules.branch_interval(self.tables, self.cards)
                needed = version(floor[0])[0] if floor else 0
                reachable = floor is not None and (last is None or needed <= last)
                self._conflict(
                    broken,
                    f"Install driver {floor[0]} or newer, or pin an older toolkit."
                    if floor and reachable
                    else "Pin an older toolkit.",
                )
            column = row["windows"] if self.system == "Windows" else row["linux"]
            if broken is None and column and not driver.at_least(column):
                self._warn(
                    "toolkit-column",
                    f"CUDA {row['cuda']} was released with driver {column}; {driver.label} is older but not older than the"
                    f" floor {floor[0] if floor else ''}: it works, without the newest driver features",
                )
        because = "pinned by the inventory" if pinned else f"{compiling[0]['name']} compiles code for the card"
        self._because(f"CUDA toolkit {row['cuda']}", because, "toolkit-architecture", "toolkits", row)
        return {"version": str(row["cuda"]), "needed": True}

    def _toolkit_card(self, row: Row, card: Card, cc: str) -> None:
        architecture = self.tables.architecture(cc)
        if architecture is None:
            return
        mine = release(row["cuda"])
        first, last = architecture["first_toolkit"], architecture["last_toolkit"]
        if mine < release(first):
            wanted, remedy = f"CUDA {first} or newer", f"Pin a toolkit from {first} on."
        elif last is not None and mine > release(last):
            wanted, remedy = (
                f"CUDA {last} or older",
                f"Pin cuda_toolkit {last}: the last that compiles for {architecture['architecture']}.",
            )
        else:
            return
        self._conflict(
            Violation(
                "toolkit-architecture",
                f"CUDA {row['cuda']} on {card.label} ({architecture['architecture']}, {cc})",
                wanted,
            ),
            remedy,
        )

    # -- models ------------------------------------------------------------------------------------------------------

    def _fit(self, model: Mapping[str, Any], build: Build | None, cuda: bool) -> dict[str, Any]:
        name = str(model["name"])
        own = (self.pins.get("models") or {}).get(name) or {}
        pinned = own.get("precision") or self.pins.get("precision") or model.get("precision")
        device = "cuda" if cuda else "cpu"
        if not cuda and model.get("requires_gpu"):
            self._conflict(
                Violation("gpu-required", f"{name} on a node without a usable GPU", "an NVIDIA card"),
                "Give the model to nodes with a card, or choose one that runs on the CPU.",
            )
        card = max(self.cards, key=lambda c: c.usable_bytes(self.tables) or 0) if cuda else None
        available = self._available(card)
        order = [pinned] if pinned else self._order(model, device)
        considered: list[dict[str, Any]] = []
        chosen: dict[str, Any] | None = None
        for precision in order:
            if precision == "float32" and any(c["violation"].rule == "precision-memory" for c in considered):
                # Where half the bytes did not fit, all of them will not.
                continue
            candidate = self._candidate(model, precision, device, card, available)
            considered.append(candidate)
            if candidate["violation"] is None:
                chosen = candidate
                break
        if chosen is None:
            self._no_precision(name, considered, card, pinned, bool(model.get("requires_gpu")) and not cuda)
        else:
            self._explain_precision(name, chosen, card, available, model)
        shown = chosen or (considered[0] if considered else None)
        return {
            "name": name,
            "device": device,
            "precision": (chosen or {}).get("precision") or (pinned or None),
            "dtype": (chosen or {}).get("dtype"),
            "method": (chosen or {}).get("method"),
            "fits": None if shown is None or shown["needed_bytes"] is None or available is None else chosen is not None,
            "memory_needed_bytes": shown["needed_bytes"] if shown else None,
            "memory_needed_high_bytes": shown["needed_high_bytes"] if shown else None,
            "memory_basis": shown["basis"] if shown else None,
            "memory_available_bytes": available,
            "card": card.label if card else None,
            "python": build.python if build else None,
            "torch": self._build_out(build, None, None),
            "considered": [{**c, "violation": c["violation"].rule if c["violation"] else None} for c in considered],
        }

    def _available(self, card: Card | None) -> int | None:
        if card is not None:
            return card.usable_bytes(self.tables)
        memory = self.request.get("memory") or {}
        value = memory.get("available_bytes")
        return int(value) if value is not None else None

    def _order(self, model: Mapping[str, Any], device: str) -> list[str]:
        """Precisions in the order of preference; a model's own list limits them."""
        offered = model.get("precisions") or {"bfloat16": {}, "float16": {}, "float32": {}}
        full = bool({"bfloat16", "float16", "float32"} & set(offered))
        if device == "cpu":
            return ["float32"] if full else [p for p in ("int8", "int4") if p in offered and offered[p].get("cpu")]
        halves = ["float16", "float32"] if model.get("float16_safe", True) else ["float32", "float16"]
        order = [p for p in ("bfloat16", *halves, "int8", "int4") if p in offered]
        preferred = model.get("preferred")
        return sorted(order, key=lambda p: p != preferred)

    def _candidate(
        self, model: Mapping[str, Any], precision: str, device: str, card: Card | None, available: int | None
    ) -> dict[str, Any]:
        row = self.tables.precision(precision)
        offered = (model.get("precisions") or {}).get(precision) or {}
        out: dict[str, Any] = {
            "precision": precision,
            "dtype": None,
            "method": offered.get("method"),
            "needed_bytes": None,
            "needed_high_bytes": None,
            "basis": None,
            "violation": None,
        }
        if row is None:
            known = [r["precision"] for r in self.tables.precisions["precisions"]]
            out["violation"] = Violation("pin-understood", f"precision {precision}", solver_rules.text_list(known))
            return out
        if precision.startswith("int") and model.get("precisions") and precision not in model["precisions"]:
            out["violation"] = Violation(
                "pin-understood",
                f"precision {precision}",
                f"one that {model['name']} offers: {', '.join(sorted(model['precisions']))}",
            )
            return out
        constants = self.tables.precisions["estimator"]
        need = estimator.need(model, precision, int(row["bits"]), constants, device)
        if need is not None:
            out["needed_bytes"], out["needed_high_bytes"], out["basis"] = need.low_bytes, need.high_bytes, need.basis
        out["violation"] = self._hardware(model, row, out, card if device == "cuda" else None)
        if out["violation"] is None and need is not None and available is not None:
            limit = int(available * constants["refuse_above_free"])
            if need.low_bytes > limit:
                out["violation"] = Violation(
                    "precision-memory",
                    f"{_gb(available)} usable, of which {_gb(limit)} may be filled",
                    f"{_gb(need.low_bytes)} for {precision}",
                )
        return out

    def _hardware(self, model: Mapping[str, Any], row: Row, out: dict[str, Any], card: Card | None) -> Violation | None:
        """Sets C(dtype); the violation of C(dtype-hardware) or C(host-memory)."""
        precision = str(row["precision"])
        if card is None:
            out["dtype"] = "float32"
            return None
        lowest = min((release(cc) for cc in card.possible), default=(0, 0))
        bf16 = self.tables.precision("bfloat16")
        fp16 = self.tables.precision("float16")
        if bf16 is None or fp16 is None:
            return None
        half = lowest >= release(fp16["minimum_compute_capability"])
        if precision in ("float32", "bfloat16", "float16"):
            out["dtype"] = precision
        elif (
            lowest >= release(bf16["minimum_compute_capability"])
            and model.get("bfloat16", True)
            and out["method"] not in ("cpm_kernels", "gptq")
        ):
            out["dtype"] = "bfloat16"
        else:
            out["dtype"] = "float16" if half else "float32"
        minimum, what = row["minimum_compute_capability"], precision
        method = self.tables.method(out["method"], precision) if out["method"] else None
        if method is not None:
            minimum, what = method["minimum_compute_capability"], f"{precision} by {out['method']}"
        host = ((model.get("precisions") or {}).get(precision) or {}).get("host_bytes")
        if host is None and method is not None and method["loads_full_weights_in_host_memory"]:
            host = estimator.weights_bytes(model, 16)
        memory = (self.request.get("memory") or {}).get("available_bytes")
        if host and memory is not None and host > memory:
            return Violation(
                "host-memory",
                f"{_gb(int(memory))} of the node's own memory available",
                f"{_gb(int(host))} to load {precision}",
            )
        if lowest < release(minimum):
            cc = ".".join(str(n) for n in lowest)
            return Violation(
                "dtype-hardware", f"{card.label} (compute capability {cc})", f"{minimum} or newer for {what}"
            )
        return None

    def _explain_precision(
        self, name: str, chosen: Mapping[str, Any], card: Card | None, available: int | None, model: Mapping[str, Any]
    ) -> None:
        where = card.label if card else "the node's memory"
        row = self.tables.precision(chosen["precision"])
        if chosen["needed_bytes"] is None or available is None:
            missing = "need" if chosen["needed_bytes"] is None else "free memory"
            self._warn(
                "precision-memory",
                f"{name}: whether {chosen['precision']} fits is not known ({missing} unknown)",
            )
            because = "the first precision that the hardware computes in"
        else:
            because = f"{_gb(chosen['needed_bytes'])} ({chosen['basis']}) fit into {_gb(available)} of {where}"
            limit = available * self.tables.precisions["estimator"]["refuse_above_free"]
            if chosen["needed_high_bytes"] > limit:
                self._warn(
                    "precision-memory",
                    f"{name}: {chosen['precision']} is tight, {_gb(chosen['needed_bytes'])} to"
                    f" {_gb(chosen['needed_high_bytes'])} of {_gb(available)}; a lower precision or a shorter context is safe",
                )
        self._because(
            f"{name}: {chosen['precision']} ({chosen['dtype']})", because, "precision-memory", "precisions", row
        )
        if (
            card is not None
            and card.compute_capability
            and chosen["precision"] != "bfloat16"
            and release(card.compute_capability) < (8, 0)
        ):
            self._because(
                f"{name}: not bfloat16",
                f"{card.label} has compute capability {card.compute_capability}",
                "dtype-hardware",
                "precisions",
                self.tables.precision("bfloat16"),
            )
        if chosen["dtype"] == "float16" and not model.get("float16_safe", True):
            self._warn(
                "dtype-hardware", f"{name} can overflow in float16; float32 does not fit or int8/int4 computes in it"
            )
        if card is not None and card.compute_capability in ("6.1", "6.2") and chosen["dtype"] == "float16":
            self._warn(
                "dtype-hardware", f"{card.label} computes float16 slowly (compute capability {card.compute_capability})"
            )

    def _no_precision(
        self,
        name: str,
        considered: Sequence[Mapping[str, Any]],
        card: Card | None,
        pinned: str | None,
        told: bool,
    ) -> None:
        if told:
            return
        if not considered:
            self._conflict(
                Violation("gpu-required", f"{name} has no precision for the CPU", "a GPU"),
                "Give the model to nodes with a card.",
            )
            return
        short = [c for c in considered if c["violation"].rule == "precision-memory"]
        host = [c for c in considered if c["violation"].rule == "host-memory"]
        least = host[-1] if host else min(short, key=lambda c: c["needed_bytes"]) if short else considered[-1]
        violation = least["violation"]
        where = card.label if card else "the node"
        ways = []
        if pinned:
            ways.append("remove the pin of the precision")
        if violation.rule == "precision-memory":
            share = self.tables.precisions["estimator"]["refuse_above_free"]
            wanted = _gb(int(least["needed_bytes"] / share))
            ways.append(f"use {'a card' if card else 'a node'} with {wanted} or more free")
            if (
                card is not None
                and card.memory_free_bytes is not None
                and card.memory_total_bytes
                and card.memory_free_bytes < 0.9 * card.memory_total_bytes
            ):
                ways.append(f"stop what uses {_gb(card.memory_total_bytes - card.memory_free_bytes)} of the card now")
            ways += ["choose a smaller model or a shorter context"]
        elif violation.rule == "host-memory":
            ways.append("free or add memory of the node itself")
        else:
            ways.append("use a newer card or another precision")
        text = ", or ".join(ways)
        self._conflict(
            Violation(violation.rule, f"{name} on {where}: {violation.found}", violation.wanted),
            text[:1].upper() + text[1:] + ".",
        )

    def _together(self, models: Sequence[Mapping[str, Any]], cuda: bool) -> None:
        fitting = [m for m in models if m["fits"]]
        if len(fitting) < 2:
            return
        needed = sum(m["memory_needed_bytes"] for m in fitting)
        cards = (
            [c.usable_bytes(self.tables) or 0 for c in self.cards] if cuda else [fitting[0]["memory_available_bytes"]]
        )
        if needed > sum(cards) * self.tables.precisions["estimator"]["refuse_above_free"]:
            names = ", ".join(m["name"] for m in fitting)
            self._warn(
                "precision-memory", f"{names} fit one at a time, not together ({_gb(needed)} of {_gb(sum(cards))})"
            )

    # -- bytes -------------------------------------------------------------------------------------------------------

    def _bytes(
        self,
        trial: Trial | None,
        toolkit: Mapping[str, Any],
        builds: Mapping[str, Build | None],
        models: Sequence[Mapping[str, Any]],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is known of downloads and disk; a total only when every part is known."""
        parts: list[tuple[str, int | None, int | None]] = []
        if trial is not None and trial.driver.action not in ("keep",):
            parts.append((f"driver {trial.driver.label}", None, None))
        present = [str(v) for v in self.request.get("toolkits") or []]
        if toolkit["version"] and not any(
            version(toolkit["version"])[: len(version(p))] == version(p) for p in present
        ):
            parts.append((f"CUDA toolkit {toolkit['version']}", None, None))
        for build in builds.values():
            if build is not None and (build.label, None, None) not in parts:
                parts.append((build.label, None, None))
        for model in self.models:
            size = model.get("download_bytes")
            parts.append((str(model["name"]), size, model.get("disk_bytes") or size))
        download = _sum([(name, size) for name, size, _disk in parts])
        disk = _sum([(name, size) for name, _download, size in parts])
        free = (self.request.get("disk") or {}).get("free_bytes")
        disk["free_bytes"] = free
        if free is not None and disk["known_bytes"] > free:
            self._conflict(
                Violation(
                    "disk-space",
                    f"{_gb(free)} free",
                    f"at least {_gb(disk['known_bytes'])} for {', '.join(n for n, _d, s in parts if s)}",
                ),
                "Free disk space, or put the models on another file system.",
            )
        return download, disk

    # -- what goes out -----------------------------------------------------------------------------------------------

    def _card_out(self, card: Card) -> dict[str, Any]:
        row = self.tables.architecture(card.possible[0]) if len(card.possible) == 1 else None
        return {
            "name": card.label,
            "compute_capability": card.compute_capability,
            "possible_compute_capabilities": list(card.possible),
            "architecture": str(row["architecture"]) if row else None,
            "datacenter": card.datacenter,
            "memory_total_bytes": card.memory_total_bytes,
            "memory_free_bytes": card.memory_free_bytes,
            "memory_nominal": card.memory_nominal,
            "memory_usable_bytes": card.usable_bytes(self.tables),
        }

    def _driver_out(self, trial: Trial | None) -> dict[str, Any]:
        out: dict[str, Any] = {
            "action": "none",
            "branch": None,
            "version": None,
            "version_floor": None,
            "flavour": None,
            "method": "none",
            "cuda_api": None,
            "installed": (self.request.get("driver") or {}).get("version"),
            "sha256": None,
            "forward_compatibility": None,
        }
        if trial is None:
            return out
        driver = trial.driver
        cudas = [b.cuda for b in trial.builds.values() if b is not None and b.cuda]
        floors = [f[0] for f in (solver_rules.mvc_floor(self.tables, c, self.system) for c in cudas) if f is not None]
        method = self._method(driver)
        lifted = sorted(
            {b.cuda for n, b in trial.builds.items() if b is not None and b.cuda and trial.compat[n]}, key=version
        )
        out.update(
            action=driver.action,
            branch=driver.branch,
            version=driver.version,
            version_floor=max(floors, key=version, default=None),
            flavour=driver.flavour or None,
            method=method,
            cuda_api=driver.cuda_api,
            sha256=next(
                (str(r["sha256"]) for r in self._releases(driver.branch) if r["version"] == driver.version), None
            ),
        )
        if lifted:
            package = f"cuda-compat-{'-'.join(str(n) for n in release(lifted[-1]))}"
            out["forward_compatibility"] = {
                "package": package,
                "library_path": f"/usr/local/cuda-{'.'.join(str(n) for n in release(lifted[-1]))}/compat",
            }
            self._warn("forward-compatibility", f"{package} must be on the library path of these environments only")
        return out

    def _method(self, driver: Driver) -> str:
        pinned = self.pins.get("driver_method", "auto")
        if pinned != "auto":
            return str(pinned)
        if driver.action == "keep" or self.system == "Windows":
            return "none"
        row = self.tables.branch(driver.branch)
        # A version of a branch that is no longer in any repository only comes as its own installer.
        if driver.version is not None and (row is None or row["status"] == "ended"):
            return "runfile"
        return "nvidia_repo"

    def _build_out(self, build: Build | None, trial: Trial | None, environment: Environment | None) -> dict[str, Any]:
        if build is None:
            return {
                "version": (environment.torch or None) if environment else None,
                "variant": (environment.variant or None) if environment else None,
                "cuda": None,
                "index": (environment.index or None) if environment else None,
                "requirement": None,
                "requirements": [],
                "torchvision": None,
                "torchaudio": None,
                "code": [],
                "glibc": None,
            }
        suffix = f"+{build.variant}" if build.index == "pytorch" else ""
        companions = [(n, build.row[n]) for n in ("torchvision", "torchaudio")]
        return {
            "version": build.torch,
            "variant": build.variant,
            "cuda": build.cuda,
            "index": build.index,
            "requirement": build.requirement,
            "requirements": [build.requirement, *[f"{n}=={v}{suffix}" for n, v in companions if v]],
            "torchvision": build.row["torchvision"],
            "torchaudio": build.row["torchaudio"],
            "code": list(build.code),
            "glibc": build.glibc,
        }


def _same(asked: str, have: str) -> bool:
    """Whether a version is the one asked for: C(2.1) means any C(2.1.x), C(2.1.2) only itself; words compare as words."""
    if asked == have:
        return True
    if not re.fullmatch(r"[\d.]+", asked) or not re.match(r"\d", have):
        return False
    wanted = version(asked)
    return version(have)[: len(wanted)] == wanted


def _index_name(index: str) -> str:
    return "PyTorch index" if index == "pytorch" else "Python index"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _sum(parts: Sequence[tuple[str, int | None]]) -> dict[str, Any]:
    unknown = sorted(name for name, size in parts if size is None)
    known = sum(size for _name, size in parts if size is not None)
    return {"total_bytes": None if unknown else known, "known_bytes": known, "unknown": unknown}
