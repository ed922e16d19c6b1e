"""No password of broker or database is in anything that the programs write."""

import pytest

from broker.settings import HistorySettings, WrongSetting, load

SECRET = "Secr3tOfTheirs"


def test_settings_do_not_show_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCM_AMQP_URL", f"amqp://guest:{SECRET}@host/")
    monkeypatch.setenv("PCM_HISTORY_URL", f"postgresql://ada:{SECRET}@host/pcm")
    assert SECRET not in repr(load(HistorySettings)) + str(load(HistorySettings))
    monkeypatch.setenv("PCM_AMQP_URL", f"http://guest:{SECRET}@host/")
    with pytest.raises(WrongSetting) as caught:
        load(HistorySettings)
    assert caught.value.__cause__
    assert SECRET not in str(caught.value) + str(caught.value.__cause__)
