#!/usr/bin/env bash
# Tells whether this installation can work. Of the live database and artifacts only permissions are asked;
# they are never opened. The server that is tried out over STDIO works in a folder of its own.
set -uo pipefail

usage() {
  cat <<'USAGE'
Usage: ./healthcheck.sh [--http]

Checks the virtual environment, pydantic, write access to the database and to the artifacts, that a server
answers over STDIO, and that the HTTP service answers if it is meant to run: with --http, or when the systemd
unit mcp-task-server is enabled or active. Prints one line for each and exits with 1 if one failed. It changes
nothing and leaves nothing behind.

Run it as the server's user and with the server's MCP_TASK_* variables.
USAGE
}

install_hint='python3 -m venv .venv && .venv/bin/pip install -r requirements.txt'
here=$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit
python=${here}/.venv/bin/python
answer_seconds=10
http=no
failures=0
export PYTHONDONTWRITEBYTECODE=1

ok() { printf 'ok    %-10s %s\n' "$1" "$2"; }

skip() { printf 'skip  %-10s %s\n' "$1" "$2"; }

fail() {
  printf 'FAIL  %-10s %s\n' "$1" "$2"
  failures=$((failures + 1))
}

check_python() {
  local version
  if ! version=$("${python}" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null); then
    fail python "${python} does not run: ${install_hint}"
  elif ! "${python}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    fail python "${python} is ${version}, but 3.11 is needed: make .venv anew with a newer Python"
  else
    ok python "${python} ${version}"
    return 0
  fi
  return 1
}

check_pydantic() {
  local version
  if ! version=$("${python}" -P -c 'import pydantic; print(pydantic.VERSION)' 2>/dev/null); then
    fail pydantic "cannot be imported: ${install_hint}"
  elif ((${version%%.*} < 2)); then
    fail pydantic "is ${version}, but 2 is needed: ${install_hint}"
  else
    ok pydantic "${version}"
  fi
}

# Sets database, artifacts and port, as config.py reads them from the environment.
read_settings() {
  local settings IFS=
  if settings=$(
    "${python}" -P - "${here}" 2>&1 <<'PYTHON'
import os
import sys

sys.path.insert(0, sys.argv[1])
from config import ConfigError, load_settings

try:
    settings = load_settings(os.environ, os.getcwd())
except ConfigError as error:
    sys.exit(str(error))
for value in (settings.db_path, settings.artifacts_dir, str(settings.port)):
    sys.stdout.buffer.write(os.fsencode(value) + b"\n")
PYTHON
  ); then
    { read -r database && read -r artifacts && read -r port; } <<<"${settings}"
  else
    fail settings "${settings##*$'\n'}"
    return 1
  fi
}

# check_folder NAME PATH FOLDER: PATH is fine if FOLDER, or the nearest above it that exists, takes files.
check_folder() {
  local folder=$3
  until [[ -e ${folder} ]]; do
    folder=$(dirname "${folder}")
  done
  if [[ ! -d ${folder} ]]; then
    fail "$1" "$2 cannot be made, ${folder} is no folder: move that file, or set another path"
  elif [[ ! -w ${folder} || ! -x ${folder} ]]; then
    fail "$1" "$2 cannot be written, ${folder} is closed to this user: change its mode, or set another path"
  else
    ok "$1" "$2"
  fi
}

check_database() {
  local file
  for file in "${database}" "${database}"{-journal,-wal,-shm,.lock}; do
    if [[ -e ${file} && (! -f ${file} || ! -r ${file} || ! -w ${file}) ]]; then
      fail database "${file} is no file that this user can write: change its mode, or set MCP_TASK_DB_PATH"
      return
    fi
  done
  if [[ -d ${database}.sessions && ! (-w ${database}.sessions && -x ${database}.sessions) ]]; then
    fail database "${database}.sessions is closed to this user: change its mode"
    return
  fi
  check_folder database "${database}" "$(dirname "${database}")"
}

check_stdio() {
  local outcome
  if outcome=$(
    "${python}" -P - "${here}/server.py" "${answer_seconds}" 2>&1 <<'PYTHON'
import json
import os
import signal
import subprocess
import sys
import tempfile

# Interrupted, end the server, then remove its folder. (After KeyboardInterrupt, run() would not wait.)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit(1))
params = {"protocolVersion": "2024-11-05", "capabilities": {}}
params["clientInfo"] = {"name": "healthcheck", "version": "1"}
requests = [
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "list_tasks"}},
]
lines = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
command, limit = [sys.executable, sys.argv[1]], float(sys.argv[2])
try:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MCP_TASK_DB_PATH"] = folder + "/tasks.db"
        os.environ["MCP_TASK_ARTIFACTS_DIR"] = folder + "/artifacts"
        os.environ["PYTHONPYCACHEPREFIX"] = folder + "/byte-code"
        server = subprocess.run(command, input=lines, capture_output=True, timeout=limit)
    initialized, listed = map(json.loads, server.stdout.splitlines())
    info = initialized["result"]["serverInfo"]
    if listed["result"]["isError"]:
        sys.exit(listed["result"]["content"][0]["text"])
    print(info["name"], info["version"])
except subprocess.TimeoutExpired:
    sys.exit(f"it did not answer and end within {limit:g} s")
except OSError as error:
    sys.exit(str(error))
except (ValueError, LookupError, TypeError):
    complaint = server.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    sys.exit(complaint or "it did not answer")
PYTHON
  ); then
    ok stdio "${outcome}"
  else
    fail stdio "${here}/server.py: ${outcome}"
  fi
}

http_is_meant_to_run() {
  [[ ${http} == yes ]] || systemctl --quiet is-enabled mcp-task-server 2>/dev/null ||
    systemctl --quiet is-active mcp-task-server 2>/dev/null
}

check_http() {
  local complaint
  if complaint=$(
    "${python}" -P - "${port}" "${answer_seconds}" 2>&1 <<'PYTHON'
import http.client
import json
import sys

try:
    port, limit = int(sys.argv[1]), float(sys.argv[2])
    service = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
    service.request("GET", "/health")
    response = service.getresponse()
    body = response.read()
    if response.status != 200 or json.loads(body) != {"status": "ok"}:
        sys.exit(f"it answered {response.status} {body[:200]!r}")
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit(str(error) or type(error).__name__)
PYTHON
  ); then
    ok http "http://127.0.0.1:${port}/health"
  else
    fail http "http://127.0.0.1:${port}/health: ${complaint}: start the service, or read its log"
  fi
}

for option in "$@"; do
  case ${option} in
    --help) usage && exit ;;
    --http) http=yes ;;
    *) usage >&2 && exit 2 ;;
  esac
done

if ! check_python; then
  skip others 'need the interpreter'
else
  check_pydantic
  if read_settings; then
    check_database
    check_folder artifacts "${artifacts}" "${artifacts}"
    check_stdio
    if http_is_meant_to_run; then
      check_http
    else
      skip http 'not meant to run: no --http, and no systemd unit mcp-task-server is enabled or active'
    fi
  else
    skip others 'need the settings'
  fi
fi
exit $((failures > 0))
