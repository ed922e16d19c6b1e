"""Unknown settings are warned of."""

from agents.settings import AgentSettings
from broker.doctor.gather import DoctorSettings
from broker.setting_warnings import known_names


def test_all_settings_are_known() -> None:
    fields = {*AgentSettings.model_fields, *DoctorSettings.model_fields}
    assert {f"PCM_{field.upper()}" for field in fields} <= known_names()
