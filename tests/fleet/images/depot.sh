set -eu
systemctl enable depot.service
