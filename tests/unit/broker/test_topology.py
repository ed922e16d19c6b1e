"""The rule, in the topology: what no queue is bound to cannot be received."""

import re

from hypothesis import given
from hypothesis import strategies as st

from broker.amqp import topology
from broker.amqp.topology import AgentKind, binding_keys, queue_name, routing_keys
from schemas import Command, Context, Job, Requirement, State, Target, everyone, group, workstation

NAMES = st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True)


def matches(pattern: str, key: str) -> bool:
    """Whether a topic binding matches a key; `*` is one word."""
    regex = r"\.".join("[^.]+" if word == "*" else re.escape(word) for word in pattern.split("."))
    return re.fullmatch(regex, key) is not None


def job(context: Context, requirement: Requirement, *targets: Target) -> Job:
    mandatory_at = {"mandatory_at": "2026-11-30T12:00:00Z"}
    return Job.model_validate(
        {
            "command": Command(argv=("true",), background=context is Context.BACKGROUND),
            "targets": targets,
            **(mandatory_at if requirement is Requirement.MANDATORY else {}),
        }
    )


@given(
    st.sampled_from(Context),
    st.sampled_from(Requirement),
    st.one_of(st.just(everyone), NAMES.map(group), NAMES.map(workstation)),
    NAMES,
    st.sets(NAMES, max_size=4),
)
def test_who_is_bound_is_who_is_addressed_and_allowed(
    context: Context, requirement: Requirement, target: Target, name: str, groups: set[str]
) -> None:
    """Q165147: the interactive agent is bound to no background key, with any groups."""
    (key,) = routing_keys(job(context, requirement, target))
    addressed = (
        target == everyone
        or (target.scope == "group" and target.name in groups)
        or (target.scope == "workstation" and target.name == name)
    )
    for kind in AgentKind:
        bound = any(matches(pattern, key) for pattern in binding_keys(kind, name, sorted(groups)))
        allowed = kind is AgentKind.SERVICE or context is Context.FOREGROUND
        assert bound == (addressed and allowed)


def test_names_of_queues_and_keys() -> None:
    assert queue_name(AgentKind.SERVICE, "ws-042") == "pcm.service.ws-042"
    assert queue_name(AgentKind.INTERACTIVE, "ws-042", "ada") == "pcm.interactive.ws-042.ada"
    assert topology.report_key(State.FAILED, "ws-042", "interactive-ada") == (
        "failed.ws-042.interactive-ada"
    )
