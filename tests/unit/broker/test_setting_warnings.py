"""Every setting is known; others are warned of."""

from agents.settings import AgentSettings
from broker.cli.setting_warnings import known_names
from broker.doctor.gather import DoctorSettings


def test_all_settings_are_known() -> None:
    fields = {*AgentSettings.model_fields, *DoctorSettings.model_fields}
    assert {f"PCM_{field.upper()}" for field in fields} <= known_names()
