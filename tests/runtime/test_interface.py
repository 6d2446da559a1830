"""The interface that gloo is told. Between real hosts: tests/integration/test_hosts.py."""

from __future__ import annotations

import pytest

from aurora_ds.runtime import interface


def test_the_loopback_and_what_cannot_be_reached_have_none() -> None:
    assert interface.interface_towards("127.0.0.1") is None
    assert interface.interface_towards("255.255.255.255") is None


def test_gloo_is_told_once_and_only_of_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(interface.GLOO, "unset")
    monkeypatch.delenv(interface.GLOO)
    interface.tell_gloo()
    assert interface.GLOO not in interface.os.environ
    monkeypatch.setattr(interface, "interface_towards", lambda address: f"towards-{address}")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.9")
    interface.tell_gloo()
    assert interface.os.environ[interface.GLOO] == "towards-10.0.0.9"
    monkeypatch.setenv(interface.GLOO, "ib0")
    interface.tell_gloo()
    assert interface.os.environ[interface.GLOO] == "ib0"


def test_an_interfaces_mtu_is_read() -> None:
    assert interface.transfer_unit("lo") >= 1500
