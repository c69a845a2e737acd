#!/usr/bin/env bash
# Installs the clients that the tests play a handoff with and that cannot live in the tests' environment:
#
#     tests/clients/install.sh [PYTHON]
#
#   .ci/venv-mcp1                           the official Python SDK 1.x
#   .ci/venv-fastmcp                        FastMCP
#   tests/clients/typescript/node_modules   both official TypeScript SDKs, and the MCP Inspector
#
# PYTHON makes the two environments (default: python3). Each of the three takes about ten seconds, and stays
# until what it was made from changes: running this again costs nothing. The last one needs npm and Node 20
# or newer, and is left out where they are missing. Tests skip what is not here; MCP1_PYTHON and
# FASTMCP_PYTHON can name other interpreters to them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${1:-python3}
typescript=tests/clients/typescript

run() {
  printf '\n=== %s\n' "$*"
  "$@"
}

# make_venv NAME: an environment from requirements-NAME.txt; nothing to do if it was made from just that.
make_venv() {
  local folder=.ci/venv-$1 requirements=tests/clients/requirements-$1.txt recipe
  recipe=$("${python}" -VV && cat "${requirements}")
  if [[ ! -f ${folder}/recipe || $(<"${folder}/recipe") != "${recipe}" ]]; then
    run "${python}" -m venv --clear "${folder}"
    run "${folder}/bin/python" -m pip install --quiet --disable-pip-version-check -r "${requirements}"
    printf '%s\n' "${recipe}" >"${folder}/recipe"
  fi
}

# make_node_modules: what package.json names, without running any script of the packages; likewise.
make_node_modules() {
  local folder=${typescript}/node_modules recipe
  recipe=$(node --version && cat "${typescript}/package.json")
  if [[ ! -f ${folder}/recipe || $(<"${folder}/recipe") != "${recipe}" ]]; then
    rm -rf "${folder}"
    run npm install --prefix "${typescript}" --ignore-scripts --no-audit --no-fund --no-package-lock \
      --loglevel error
    printf '%s\n' "${recipe}" >"${folder}/recipe"
  fi
}

make_venv mcp1
make_venv fastmcp
node=$(node -p 'parseInt(process.versions.node)' 2>/dev/null || printf 0)
if [[ ${node} -ge 20 ]] && command -v npm >/dev/null; then
  make_node_modules
else
  printf '%s: no npm with Node 20 or newer: the TypeScript clients are left out\n' "$0" >&2
fi
