"""Every Bicep file can be read, says what it is for, and bounds what it is given."""

import pytest

from tests.infra.bicep import BicepFile, all_files, decorators, read

BOUNDS = {"allowed", "min_length", "max_length", "min_value", "max_value"}
UNBOUNDED_TYPES = {"bool", "object"}


@pytest.mark.parametrize("file", all_files(), ids=lambda file: file.path.name)
def test_files_can_be_read_and_describe_all_parameters_and_outputs(file: BicepFile) -> None:
    assert file.text.startswith("// ")
    for declarations in (file.parameters, file.outputs):
        undescribed = [name for name, found in declarations.items() if "description" not in decorators(found)]
        assert undescribed == []


def test_every_parameter_of_a_deployment_is_bounded() -> None:
    parameters = read("main.bicep").parameters
    unbounded = [
        name
        for name, parameter in parameters.items()
        if parameter["type"] not in UNBOUNDED_TYPES and not BOUNDS | {"secure"} & decorators(parameter).keys()
    ]
    assert unbounded == []


def test_modules_are_files_of_this_folder() -> None:
    for file in all_files():
        for module in file.modules.values():
            assert module["type"] == "local"
            assert (file.path.parent / module["detail"]["path"]).is_file()


def test_every_module_is_used() -> None:
    used = {module["detail"]["path"] for module in read("main.bicep").modules.values()}
    assert used == {f"modules/{file.path.name}" for file in all_files() if file.path.parent.name == "modules"}
