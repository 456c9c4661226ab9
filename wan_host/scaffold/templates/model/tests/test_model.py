import wan_host_my_plugin


def test_it_is_one_model_that_wan21_runs():
    (model,) = wan_host_my_plugin.list_models()
    assert (model.name, model.family, model.runner) == ("my-plugin", "wan", "wan21")


def test_its_path_is_a_setting(monkeypatch):
    monkeypatch.setenv("WAN_HOST_MY_PLUGIN_PATH", "/elsewhere/my-plugin")
    (model,) = wan_host_my_plugin.list_models()
    assert model.path == "/elsewhere/my-plugin"
