"""Which revision a message is written in: the routing rules, the order of the checks, and nothing latched."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import META, STATELESS, HttpServer, SseClient, StdioClient, enveloped, request

from dispatcher import Dispatcher
from eras import handshake_revision, revision_of
from methods import TaskMethods
from protocol import BY_DATE, McpHeaders, Peer, Request, RpcError
from store import Store
from tools import Workplace

JsonObject = dict[str, Any]
HANDSHAKE = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
STRANGE = ["2026-07-29", "1999-01-01", "DRAFT", "", "2025-06-18, 2025-06-18", "2025-6-18", "\u0662"]
PV, CC = META + "protocolVersion", META + "clientCapabilities"
Era = str | int  # the date of a revision, or the code of the refusal


def era(method: str, params: Any, headers: McpHeaders | None = None, negotiated: str | None = None) -> Era:
    """Return the revision that a request is taken for, or the code it is refused with."""
    try:
        handshake = handshake_revision(None if negotiated is None else BY_DATE[negotiated], headers)
        return revision_of(Request(1, method, params), handshake, headers).date
    except RpcError as error:
        return error.code


def meta(**members: Any) -> JsonObject:
    return {"_meta": {META + name: value for name, value in members.items()}}


def named(version: Any) -> JsonObject:
    return enveloped(version=version)


def header(*versions: str, method: str = "tools/list") -> McpHeaders:
    return McpHeaders(versions, (method,))


# --- The body rule: STDIO and HTTP+SSE --------------------------------------------------------------------


@pytest.mark.parametrize("negotiated", [None, *HANDSHAKE])
@pytest.mark.parametrize("asked", [*HANDSHAKE, STATELESS, *STRANGE])
@pytest.mark.parametrize(
    "envelope", [{}, named(STATELESS), named("1999-01-01"), {"_meta": {}}], ids=json.dumps
)
def test_initialize_is_always_a_handshake(negotiated: str | None, asked: str, envelope: JsonObject) -> None:
    """An initialize that names a revision negotiates, whatever came before it and whatever it carries."""
    agreed = asked if asked in HANDSHAKE else "2025-11-25"
    assert era("initialize", {"protocolVersion": asked, **envelope}, negotiated=negotiated) == agreed


@pytest.mark.parametrize("negotiated", [None, *HANDSHAKE])
@pytest.mark.parametrize("method", ["tools/list", "ping", "server/discover", "initialize", "nope"])
def test_a_request_that_names_its_revision_is_stateless(negotiated: str | None, method: str) -> None:
    """What was negotiated on a connection means nothing to a request with an envelope."""
    assert era(method, named(STATELESS), negotiated=negotiated) == STATELESS
    for date in (*HANDSHAKE, "1999-01-01", ""):
        assert era(method, named(date), negotiated=negotiated) == -32022
    no_dates: list[Any] = [None, 20260728, [STATELESS], {}, True]
    for version in no_dates:
        assert era(method, named(version), negotiated=negotiated) == -32602


@pytest.mark.parametrize("negotiated", HANDSHAKE)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"_meta": {}},
        {"_meta": {"progressToken": 1}},
        {"_meta": meta(clientCapabilities={}, clientInfo={"name": "x"})["_meta"]},
        {"_meta": None},
        {"_meta": []},
        {"_meta": PV},
        {"_meta": [PV]},
        {PV: STATELESS, CC: {}},
        {"_META": meta(protocolVersion=STATELESS)["_meta"]},
        {"protocolVersion": STATELESS},
    ],
    ids=json.dumps,
)
def test_any_other_request_is_what_was_negotiated(negotiated: str, params: JsonObject) -> None:
    """`_meta` alone proves nothing: legacy clients use it for progress tokens."""
    assert era("tools/list", params, negotiated=negotiated) == negotiated


@pytest.mark.parametrize("method", ["tools/list", "server/discover", "initialize", "nope", "Ping"])
def test_nothing_to_go_by_is_invalid_in_both_eras(method: str) -> None:
    """Without a handshake and without an envelope only ping is answered."""
    assert era(method, {}) == -32602
    assert era(method, {"_meta": {"progressToken": 1}}) == -32602
    assert isinstance(era("ping", {}), str)


@pytest.mark.parametrize("capabilities", [None, [], "", 1, True])
def test_capabilities_are_an_object(capabilities: Any) -> None:
    """The envelope needs both of its members, on every transport."""
    params = meta(protocolVersion=STATELESS, clientCapabilities=capabilities)
    assert era("tools/list", params, negotiated="2025-11-25") == -32602
    assert era("tools/list", meta(protocolVersion=STATELESS), negotiated="2025-11-25") == -32602
    assert era("tools/list", params, header(STATELESS)) == -32602


# --- The table for /mcp -----------------------------------------------------------------------------------

LEGACY_AT = [((date,), date) for date in HANDSHAKE]
TABLE: list[tuple[tuple[str, ...], Any, Era]] = [
    # No header: legacy, at the oldest revision that has this transport; or stateless and incomplete.
    ((), None, "2025-03-26"),
    *[((), version, -32020) for version in (STATELESS, *HANDSHAKE, *STRANGE, 1)],
    # A legacy date: legacy at that date; or a contradiction, unless header and body agree on it.
    *[(versions, None, date) for versions, date in LEGACY_AT],
    *[(versions, STATELESS, -32020) for versions, _ in LEGACY_AT],
    *[(versions, date, -32022) for versions, date in LEGACY_AT],
    *[(versions, "1999-01-01", -32020) for versions, _ in LEGACY_AT],
    (("2025-06-18",), "2025-11-25", -32020),
    # The stateless date: the ladder, envelope first.
    ((STATELESS,), None, -32602),
    ((STATELESS,), STATELESS, STATELESS),
    *[((STATELESS,), version, -32020) for version in (*HANDSHAKE, *STRANGE, 20260728)],
    # Anything else: the ladder if the body names a revision, otherwise unsupported.
    *[((strange,), None, -32022) for strange in STRANGE],
    *[((strange,), STATELESS, -32020) for strange in STRANGE],
    *[((strange,), strange, -32022) for strange in STRANGE],
    # Twice the same header is not one header.
    ((STATELESS, STATELESS), STATELESS, -32020),
    ((STATELESS, "2025-06-18"), STATELESS, -32020),
    ((STATELESS, STATELESS), None, -32602),
    (("2025-06-18", "2025-06-18"), None, -32022),
    (("2025-06-18", "2025-11-25"), None, -32022),
]


@pytest.mark.parametrize(("versions", "version", "expected"), TABLE)
@pytest.mark.parametrize("negotiated", [None, "2025-11-25"])
def test_the_table_of_the_http_rule(
    versions: tuple[str, ...], version: Any, expected: Era, negotiated: str | None
) -> None:
    """Header and envelope decide together; what a peer negotiated does not count at /mcp."""
    params = {} if version is None else named(version)
    assert era("tools/list", params, header(*versions), negotiated) == expected


@pytest.mark.parametrize("versions", [(), *[(date,) for date in HANDSHAKE], *[(s,) for s in STRANGE]])
@pytest.mark.parametrize("asked", [*HANDSHAKE, STATELESS, "1999-01-01"])
def test_initialize_at_mcp_is_a_handshake(versions: tuple[str, ...], asked: str) -> None:
    """Before negotiation the header means nothing, unless it says that there is no handshake."""
    agreed = asked if asked in HANDSHAKE else "2025-11-25"
    assert era("initialize", {"protocolVersion": asked}, header(*versions, method="initialize")) == agreed


def test_the_stateless_era_has_no_initialize_at_mcp() -> None:
    """Under its header an initialize climbs the ladder like every request, to be not found at its end."""
    params = {"protocolVersion": "2025-11-25"}
    headers = header(STATELESS, method="initialize")
    assert era("initialize", params, headers) == -32602
    assert era("initialize", params | named(STATELESS), headers) == STATELESS
    assert era("initialize", params | named(STATELESS), header(method="initialize")) == -32020


def test_other_headers_do_not_make_an_era() -> None:
    """Mcp-Method and Mcp-Name come with legacy requests too."""
    for date in HANDSHAKE:
        assert era("tools/list", {}, McpHeaders((date,), ("tools/call", "x"), ("y",))) == date
    assert era("initialize", {"protocolVersion": "2025-06-18"}, header(method="initialize")) == "2025-06-18"


# --- The ladder -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dispatcher]:
    """Return a dispatcher without a transport."""
    folder = tmp_path_factory.mktemp("eras")
    store = Store(str(folder / "tasks.db"), str(folder))
    yield Dispatcher(lambda _: TaskMethods(Workplace(store)))
    store.close()


class Draft:
    """A stateless tools/call that is right, until something in it is broken."""

    def __init__(self) -> None:
        self.method = "tools/call"
        self.params = {"name": "list_tasks", **enveloped()}
        self.version: tuple[str, ...] = (STATELESS,)
        self.method_header: tuple[str, ...] = (self.method,)
        self.name: tuple[str, ...] = ("list_tasks",)

    def meta(self, **members: Any) -> None:
        self.params["_meta"] |= {META + name: value for name, value in members.items()}

    def without(self, name: str) -> None:
        del self.params["_meta"][META + name]

    def named(self, version: str) -> None:
        self.meta(protocolVersion=version)
        self.version = (version,)

    def renamed(self, method: str) -> None:
        self.method, self.method_header = method, (method,)

    def set(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def send(self, dispatcher: Dispatcher, is_http: bool = True) -> tuple[int, int]:
        """Return the code, 0 for a result, and the HTTP status."""
        headers = McpHeaders(self.version, self.method_header, self.name) if is_http else None
        peer = Peer(lambda message: None, None if is_http else "a")
        reply = dispatcher.handle(json.dumps(request(self.method, self.params)).encode(), peer, headers)
        answer = json.loads(reply.body)
        return answer["error"]["code"] if "error" in answer else 0, reply.status


Break = Callable[[Draft], None]
CAPABILITIES: list[Break] = [
    lambda d: d.without("clientCapabilities"),
    lambda d: d.meta(clientCapabilities=[]),
]
ENVELOPE: list[Break] = [
    *CAPABILITIES,
    lambda d: d.without("protocolVersion"),
    lambda d: d.params.pop("_meta"),
    lambda d: d.params.update(_meta=None),
    lambda d: d.params.update(_meta=[PV, CC]),
]  # fmt: skip
REPEATED: list[Break] = [
    lambda d: d.set(version=()),
    lambda d: d.set(version=("2025-06-18",)),
    lambda d: d.set(version=(*d.version, *d.version)),
    lambda d: d.set(method_header=()),
    lambda d: d.set(method_header=("Tools/call",)),
    lambda d: d.set(method_header=("tools/list",)),
    lambda d: d.set(method_header=(*d.method_header, *d.method_header)),
]
NAME: list[Break] = [
    lambda d: d.set(name=()),
    lambda d: d.set(name=("List_tasks",)),
    lambda d: d.set(name=("get_task",)),
    lambda d: d.set(name=("",)),
    lambda d: d.set(name=("list_tasks", "list_tasks")),
    lambda d: d.set(name=("list_tasks", "")),
]
VERSION: list[Break] = [
    lambda d: d.named("1999-01-01"),
    lambda d: d.named("2025-11-25"),
    lambda d: d.named(""),
]
METHOD: list[Break] = [
    lambda d: d.renamed("nope"),
    lambda d: d.renamed("ping"),
    lambda d: d.renamed("initialize"),
]
OWN: list[Break] = [lambda d: d.params.update(arguments=[])]
RUNGS: list[tuple[list[Break], int, int]] = [
    (ENVELOPE, -32602, 400),
    (REPEATED, -32020, 400),
    (VERSION, -32022, 400),
    (METHOD, -32601, 404),
    (OWN, -32602, 400),
]


def test_an_unbroken_request_is_served(dispatcher: Dispatcher) -> None:
    """The request that the next tests break is right."""
    assert Draft().send(dispatcher) == (0, 200)
    assert Draft().send(dispatcher, is_http=False) == (0, 200)


@pytest.mark.parametrize(("breaks", "code", "status"), [*RUNGS, (NAME, -32020, 400)])
def test_each_rung_of_the_ladder_breaks(
    dispatcher: Dispatcher, breaks: list[Break], code: int, status: int
) -> None:
    """Every way to break a rung has the rung's code and status."""
    for broken in breaks:
        draft = Draft()
        broken(draft)
        assert draft.send(dispatcher) == (code, status)


PAIRS = [(first, second) for second in range(len(RUNGS)) for first in range(second)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_first_broken_rung_is_the_answer(dispatcher: Dispatcher, first: int, second: int) -> None:
    """Of two rungs that are broken the earlier one answers: the order is the specification's."""
    breaks, code, status = RUNGS[first]
    if breaks is ENVELOPE and RUNGS[second][0] in (REPEATED, VERSION):
        breaks = CAPABILITIES  # without a revision in the body another row of the table may apply
    for earlier in breaks:
        for later in RUNGS[second][0]:
            draft = Draft()
            later(draft)
            earlier(draft)
            assert draft.send(dispatcher) == (code, status)


@pytest.mark.parametrize("later", [*VERSION, *OWN])
@pytest.mark.parametrize("earlier", NAME)
def test_the_name_is_compared_before_the_version(
    dispatcher: Dispatcher, earlier: Break, later: Break
) -> None:
    """Mcp-Name is on the rung of the headers."""
    draft = Draft()
    later(draft)
    earlier(draft)
    assert draft.send(dispatcher) == (-32020, 400)


@pytest.mark.parametrize("broken", [*REPEATED, *NAME])
def test_headers_count_at_mcp_only(dispatcher: Dispatcher, broken: Break) -> None:
    """On STDIO and HTTP+SSE nobody sends them, and nobody compares them."""
    draft = Draft()
    broken(draft)
    assert draft.send(dispatcher, is_http=False) == (0, 200)


@pytest.mark.parametrize(
    ("method", "member"), [("tools/call", "name"), ("prompts/get", "name"), ("resources/read", "uri")]
)
def test_three_methods_have_their_name_repeated(method: str, member: str) -> None:
    """Mcp-Name repeats what a request is about, for those methods that have it; the others ignore it."""
    params = {member: "x", **enveloped()}
    assert era(method, params, McpHeaders((STATELESS,), (method,), ("x",))) == STATELESS
    assert era(method, params, McpHeaders((STATELESS,), (method,), ("y",))) == -32020
    assert era(method, params, McpHeaders((STATELESS,), (method,))) == -32020
    assert era(method, enveloped(), McpHeaders((STATELESS,), (method,), ("x",))) == -32020
    for other in ("tools/list", "completion/complete", "resources/subscribe", "server/discover"):
        assert era(other, params, McpHeaders((STATELESS,), (other,))) == STATELESS
        assert era(other, params, McpHeaders((STATELESS,), (other,), ("y",))) == STATELESS


# --- Mcp-Name ---------------------------------------------------------------------------------------------


def is_name(value: str, name: Any) -> bool:
    """Return whether a header's value stands for `params.name`."""
    headers = McpHeaders((STATELESS,), ("tools/call",), (value,))
    answer = era("tools/call", {"name": name, **enveloped()}, headers)
    assert answer in (STATELESS, -32020)
    return answer == STATELESS


def encoded(name: str) -> str:
    return f"=?base64?{base64.b64encode(name.encode()).decode()}?="


@pytest.mark.parametrize(
    ("value", "name", "matches"),
    [
        ("get_task", "get_task", True),
        ("=?base64?Z2V0X3Rhc2s=?=", "get_task", True),
        ("=?base64?w6k=?=", "\u00e9", True),
        ("=?base64?8J+YgA==?=", "\U0001f600", True),
        ("=?base64?PT9iYXNlNjQ/ZVg/PQ==?=", "=?base64?eX?=", True),
        ("=?base64??=", "", True),
        ("", "", True),
        ("get_task", "Get_task", False),
        ("get_task", "get_task ", False),
        ("=?base64?w6k?=", "\u00e9", False),  # without padding
        ("=?base64?w6k==?=", "\u00e9", False),  # with too much of it
        ("=?base64?w6l=?=", "\u00e9", False),  # bits that belong to nothing: not the canonical form
        ("=?base64?w6 k=?=", "\u00e9", False),  # a blank, a line end, a dot: not the alphabet
        ("=?base64?w6k=\n?=", "\u00e9", False),
        ("=?base64?w6.k=?=", "\u00e9", False),
        ("=?base64?_w==?=", "\u00ff", False),  # the alphabet of URLs
        ("=?base64?/w==?=", "\u00ff", False),  # Latin-1, not UTF-8
        ("=?base64?7aCA?=", "\ud800", False),  # half of a surrogate pair
        ("=?base64?w4k=?=", "\u00e9", False),  # another letter
        ("=?BASE64?Z2V0X3Rhc2s=?=", "get_task", False),
        ("=?base64?Z2V0X3Rhc2s=", "get_task", False),  # markers at one end: literal
        ("Z2V0X3Rhc2s=?=", "get_task", False),
        ("=?base64?Z2V0X3Rhc2s=", "=?base64?Z2V0X3Rhc2s=", True),
        ("Z2V0X3Rhc2s=?=", "Z2V0X3Rhc2s=?=", True),
        ("=?base64?", "=?base64?", True),
        ("?=", "?=", True),
        ("=?base64?%%?=", "=?base64?%%?=", False),  # both markers: never literal
        ("=?base64?\u00e9?=", "\u00e9", False),
        ("1", 1, False),
        ("null", None, False),
        ("['x']", ["x"], False),
    ],
)
def test_a_name_is_literal_or_base64(value: str, name: Any, matches: bool) -> None:
    """A name has one literal form and one base64 form; whatever is nearly one of them is none."""
    assert is_name(value, name) is matches


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None)
@given(names)
@example("=?base64?eA==?=")
def test_every_name_can_be_encoded(name: str) -> None:
    """Whatever a task or tool is called, base64 says it."""
    assert is_name(encoded(name), name)


@settings(deadline=None)
@given(value=names | names.map(encoded), name=names)
@example(value="=?base64?eA==?=", name="x")
@example(value="=?base64?eB==?=", name="x")
def test_no_other_value_stands_for_a_name(value: str, name: str) -> None:
    """A value matches if it is the name, or its encoding, and in no other case."""
    is_marked = len(value) > 10 and value.startswith("=?base64?") and value.endswith("?=")
    assert is_name(value, name) is (value == encoded(name) if is_marked else value == name)


@settings(deadline=None)
@given(name=names, at=st.integers(0, 40), letter=st.characters(codec="latin-1"))
def test_a_letter_too_many_breaks_the_encoding(name: str, at: int, letter: str) -> None:
    """Nothing can be put into an encoded name without making it another one, or none."""
    whole = encoded(name)
    spoiled = whole[:at] + letter + whole[at:]
    assert not is_name(spoiled, name)


# --- Nothing breaks the rules -----------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.sampled_from([STATELESS, *HANDSHAKE, *STRANGE, PV])
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
    st.sampled_from([PV, CC, "_meta", "name", "uri", "protocolVersion", "x"]), inner, max_size=3
), max_leaves=6)  # fmt: skip
values = st.lists(st.sampled_from([STATELESS, *HANDSHAKE, *STRANGE, "tools/call", "x"]), max_size=2).map(
    tuple
)


@settings(deadline=None)
@given(
    method=st.sampled_from(["tools/call", "initialize", "ping", "server/discover", "resources/read", "x"]),
    params=st.dictionaries(st.sampled_from(["_meta", "name", "uri", "protocolVersion"]), anything),
    headers=st.none() | st.builds(McpHeaders, values, values, values),
    negotiated=st.sampled_from([None, *HANDSHAKE]),
)
def test_every_request_has_an_era_or_a_refusal(
    method: str, params: JsonObject, headers: McpHeaders | None, negotiated: str | None
) -> None:
    """Whatever is claimed, the answer is a revision or one of the four codes, and never a crash."""
    answer = era(method, params, headers, negotiated)
    assert answer in [*HANDSHAKE, STATELESS, -32602, -32020, -32022]
    if headers is None:
        assert answer != -32020


STEPS = ["2024-11-05", "2025-03-26", "2025-11-25", "stateless", "stateless unknown", "list", "ping"]


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=12))
@example(steps=["stateless", "2024-11-05", "list", "stateless", "list"])
def test_the_era_is_never_latched(dispatcher: Dispatcher, steps: list[str]) -> None:
    """On one connection each message is what it says it is, in any order."""
    peer = Peer(lambda message: None, "a")
    negotiated: str | None = None
    for step in steps:
        if step in HANDSHAKE:
            message = request("initialize", {"protocolVersion": step})
            negotiated = step
        elif step == "stateless unknown":
            message = request("nope", enveloped())
        else:
            message = request(
                "ping" if step == "ping" else "tools/list", enveloped() if step == "stateless" else {}
            )
        answer = json.loads(dispatcher.handle(json.dumps(message).encode(), peer).body)
        check_step(step, answer, negotiated)


def check_step(step: str, answer: JsonObject, negotiated: str | None) -> None:
    if step in HANDSHAKE:
        assert answer["result"]["protocolVersion"] == step
    elif step == "stateless unknown":
        assert answer["error"]["code"] == -32601
    elif step == "ping":
        assert answer["result"] == {}
    elif step == "list" and negotiated is None:
        assert answer["error"]["code"] == -32602
    else:
        check_listing(answer["result"], STATELESS if step == "stateless" else str(negotiated))


def check_listing(result: JsonObject, date: str) -> None:
    """Hold a list of tools against the revision it is to be written in."""
    tool = result["tools"][0]
    assert ("resultType" in result, "ttlMs" in result) == (date == STATELESS, date == STATELESS)
    assert ("title" in tool, "annotations" in tool) == (date >= "2025-06-18", date >= "2025-03-26")


# --- Over a real pipe, and over one event stream ----------------------------------------------------------


@pytest.fixture(params=["stdio", "sse"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StdioClient | SseClient]:
    """Return a connection on which nothing was said yet."""
    with ExitStack() as stack:
        if request.param == "stdio":
            yield stack.enter_context(StdioClient(tmp_path))
            return
        client = SseClient(stack.enter_context(HttpServer(tmp_path)))
        stack.callback(client.close)
        yield client


def test_discover_then_initialize(client: StdioClient | SseClient) -> None:
    """A client that probes, gets a good answer and then shakes hands all the same is served."""
    discovered = client.request("server/discover", enveloped())["result"]
    assert STATELESS in discovered["supportedVersions"]
    assert client.initialize("2025-06-18")["protocolVersion"] == "2025-06-18"
    check_listing(client.request("tools/list")["result"], "2025-06-18")


def test_a_process_opens_with_a_stateless_list(client: StdioClient | SseClient) -> None:
    """A client that has probed elsewhere opens with tools/list: no discover, no initialize."""
    check_listing(client.request("tools/list", enveloped())["result"], STATELESS)
    assert client.request("ping", {})["result"] == {}


def test_a_probe_without_envelope_falls_back(client: StdioClient | SseClient) -> None:
    """A bare server/discover is invalid in both eras, and harms nothing: initialize works after it."""
    assert client.request("server/discover", {})["error"]["code"] == -32602
    assert client.request("tools/list", {})["error"]["code"] == -32602
    assert client.initialize("2025-11-25")["protocolVersion"] == "2025-11-25"
    check_listing(client.request("tools/list")["result"], "2025-11-25")
    assert client.request("server/discover", {})["error"]["code"] == -32601


def test_two_eras_share_one_connection(client: StdioClient | SseClient) -> None:
    """Stateless requests change nothing for the handshake's, and the other way round."""
    for date in [*HANDSHAKE, "2024-11-05"]:
        check_listing(client.request("tools/list", enveloped())["result"], STATELESS)
        client.initialize(date)
        assert client.request("ping", enveloped())["error"]["code"] == -32601
        assert client.request("tools/list", named("2099-01-01"))["error"]["code"] == -32022
        check_listing(client.request("tools/list", {"_meta": {"progressToken": 0}})["result"], date)
        assert client.request("ping", {})["result"] == {}


def test_initialize_wins_over_its_envelope(client: StdioClient | SseClient) -> None:
    """An initialize that carries an envelope too is the handshake it asks for."""
    params = {"protocolVersion": "2025-03-26", "capabilities": {}, **enveloped()}
    result = client.request("initialize", params)["result"]
    assert (result["protocolVersion"], "resultType" in result) == ("2025-03-26", False)


def test_headers_mean_nothing_on_an_event_stream(tmp_path: Path) -> None:
    """HTTP+SSE carries every revision by its body alone: its clients send other headers, or none."""
    with HttpServer(tmp_path) as service, ExitStack() as stack:
        client = SseClient(service)
        stack.callback(client.close)
        client.initialize("2025-06-18")
        for headers in ({"MCP-Protocol-Version": STATELESS}, {"MCP-Protocol-Version": "1999-01-01"}, {}):
            for params, date in (({}, "2025-06-18"), (enveloped(), STATELESS)):
                body = json.dumps(request("tools/list", params))
                assert client.post(body, {**headers, "Mcp-Method": "ping"}) == (202, b"")
                check_listing(client.receive()["result"], date)


@pytest.mark.parametrize("value", ["=?base64?%%?=", "=?base64?w6k?=", "=?base64?/w==?="])
@pytest.mark.parametrize("params", [{}, {"name": None}])
def test_a_malformed_name_matches_nothing(value: str, params: JsonObject) -> None:
    """A broken Mcp-Name is a mismatch on its own rung, also when params have no name."""
    assert _named_in_header(value, params) == -32020


def test_markers_that_overlap_are_no_markers() -> None:
    """=?base64?= starts and ends like an encoded name, but is shorter than the two markers: literal."""
    assert _named_in_header("=?base64?=", {"name": "=?base64?="}) == STATELESS
    assert _named_in_header("=?base64?=", {"name": ""}) == -32020


def _named_in_header(value: str, params: JsonObject) -> str | int:
    """Return the revision of a tools/call under a header Mcp-Name, or the code of its refusal."""
    headers = McpHeaders((STATELESS,), ("tools/call",), (value,))
    call = Request(1, "tools/call", params | enveloped())
    try:
        return revision_of(call, handshake_revision(None, headers), headers).date
    except RpcError as error:
        return error.code
