"""The rights for a name match exactly that name, for any names."""

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from broker.amqp import topology
from broker.amqp.topology import JOBS, REPORTS, AgentKind, binding_keys
from broker.enrolment.rights import AgentLogin, agents_of, permissions, topic_permissions
from schemas import State

NAMES = st.from_regex(r"[a-z0-9_-]{1,12}", fullmatch=True)
USERS = st.one_of(NAMES, st.text("aAbé.@+\\=2e", min_size=1, max_size=50))
AGENTS = st.one_of(
    st.builds(AgentLogin, st.just(AgentKind.SERVICE), NAMES),
    st.builds(lambda name, user: agents_of(name, [user])[1], NAMES, USERS),
)


def allows(pattern: str, name: str) -> bool:
    """Whether RabbitMQ finds a pattern in a name; Python writes the end of the text differently."""
    return re.search(pattern.replace(r"\z", r"\Z"), name) is not None


@given(AGENTS, AGENTS)
def test_no_other_agents_queue_or_reports(own: AgentLogin, other: AgentLogin) -> None:
    assume(own != other)
    rights, topics = permissions(own), topic_permissions(own, [])
    assert own.login != other.login
    assert allows(rights["read"], own.queue)
    assert not allows(rights["read"], other.queue)
    assert allows(rights["write"], REPORTS)
    for name in (own.queue, other.queue, JOBS, topology.DEAD, "amq.default", "", f"{REPORTS}\n"):
        assert not allows(rights["write"], name)
    assert not allows(rights["read"], f"{own.queue}\n")
    assert not allows(rights["configure"], "\n")
    for state in (*State, "check_in", "dead"):
        mine = topology.report_key(state, own.workstation, own.name)
        theirs = topology.report_key(state, other.workstation, other.name)
        assert allows(topics[REPORTS]["write"], mine)
        assert not allows(topics[REPORTS]["write"], theirs)
        assert not allows(topics[REPORTS]["write"], f"{mine}\n")


@given(AGENTS, st.sets(NAMES, max_size=3), NAMES, st.sampled_from(AgentKind))
def test_keys_of_ones_own_and_no_others(
    own: AgentLogin, groups: set[str], stranger: str, kind: AgentKind
) -> None:
    pattern = topic_permissions(own, sorted(groups))[JOBS]["read"]
    mine = binding_keys(own.kind, own.workstation, groups)
    assert all(allows(pattern, key) for key in mine)
    assert not any(allows(pattern, f"{key}\n") for key in mine)
    for key in (*binding_keys(kind, stranger, [stranger]), "#", "*.#", "*.*.*.*", "background.#"):
        assert allows(pattern, key) is (key in mine)


@given(AGENTS, NAMES)
def test_a_login_names_one_agent(own: AgentLogin, workstation: str) -> None:
    assert AgentLogin.of_login(own.login, own.workstation) == own
    assert AgentLogin.of_queue(own.queue) == own
    assume(workstation != own.workstation)
    assert AgentLogin.of_login(own.login, workstation) is None
    for login in ("guest", "interactive@ws", "interactive-@ws", "service-x@ws", "other-x@ws"):
        assert AgentLogin.of_login(login, "ws") is None
