"""No key, no open door: the rules hold for every file, and each rule is shown to catch what it is for."""

from pathlib import Path

import pytest

from tests.infra.bicep import INFRA, BicepFile, all_files, read
from tests.infra.security_rules import findings

HEAD = "@description('Name.')\nparam name string\n"


@pytest.mark.parametrize("file", all_files(), ids=lambda file: file.path.name)
def test_files_follow_the_security_rules(file: BicepFile) -> None:
    assert findings(file) == []


BAD_SNIPPETS = {
    "listKeys of a resource": (
        "resource s 'Microsoft.Storage/storageAccounts@2025-06-01' existing = {\n  name: name\n}\n"
        "var key = s.listKeys().keys[0].value\n",
        "a key: listKeys(",
    ),
    "listKeys as a function": ("var key = listKeys(resourceId('a/b', name), '2025-06-01').key1\n", "a key: listKeys("),
    "a connection string": (
        "var connection = 'DefaultEndpointsProtocol=https;AccountName=${name};AccountKey=x'\n",
        "a key: AccountKey",
    ),
    "a shared access key": ("var connection = 'SharedAccessKey=x'\n", "a key: SharedAccessKey"),
    "a signed link": ("var link = listAccountSas(name, '2025-06-01', {}).accountSasToken\n", "a key: listAccountSas("),
    "an output with a connection string": (
        "resource i 'Microsoft.Insights/components@2020-02-02' existing = {\n  name: name\n}\n"
        "output connection string = i.properties.ConnectionString\n",
        "output connection shows a secret",
    ),
    "an unmarked secret": ("param webhookPassword string\n", "parameter webhookPassword is not @secure"),
    "a secret with a default": (
        "@secure()\nparam webhookPassword string = 'changeme'\n",
        "parameter webhookPassword has a default",
    ),
    "a secret in an output": (
        "@secure()\nparam webhookPassword string\noutput link string = 'https://x/${webhookPassword}'\n",
        "output link shows a secret",
    ),
    "a secret in a variable": (
        "@secure()\nparam webhookPassword string\nvar settings = {\n  PASSWORD: webhookPassword\n}\n",
        "variable settings: webhookPassword leaves its place",
    ),
    "a secret in an app setting": (
        "@secure()\nparam webhookPassword string\n"
        "resource c 'Microsoft.Web/sites/config@2025-03-01' = {\n  name: 'x/appsettings'\n"
        "  properties: {\n    PASSWORD: webhookPassword\n  }\n}\n",
        "resource c: webhookPassword leaves its place",
    ),
    "a secret handed to an ordinary parameter": (
        "@secure()\nparam webhookPassword string\n"
        "module i 'modules/identity.bicep' = {\n  params: {\n    name: webhookPassword\n    location: name\n"
        "    tags: {}\n  }\n}\n",
        "module i: webhookPassword leaves its place",
    ),
    "a right without a reason, for the whole group, under a fixed name": (
        "resource r 'Microsoft.Authorization/roleAssignments@2022-04-01' = {\n  name: name\n  properties: {\n"
        "    principalId: name\n    principalType: 'User'\n    roleDefinitionId: name\n  }\n}\n",
        "r: does not say why",
    ),
    "a type that no rule knows": (
        "resource v 'Microsoft.Compute/virtualMachines@2024-07-01' = {\n  name: name\n}\n",
        "v: no rule says how a Microsoft.Compute/virtualMachines is made safe",
    ),
}


@pytest.mark.parametrize(("snippet", "finding"), BAD_SNIPPETS.values(), ids=BAD_SNIPPETS.keys())
def test_bad_snippets_are_caught(snippet: str, finding: str) -> None:
    found = findings(BicepFile(INFRA / "bad.bicep", HEAD + snippet))
    assert any(line.startswith(finding) for line in found), found


def test_all_that_is_wrong_with_a_right_is_named() -> None:
    snippet, _ = BAD_SNIPPETS["a right without a reason, for the whole group, under a fixed name"]
    assert len(findings(BicepFile(INFRA / "bad.bicep", HEAD + snippet))) == 4


MUTANTS = (
    ("modules/storage.bicep", "allowSharedKeyAccess: false", "allowSharedKeyAccess: true"),
    ("modules/storage.bicep", "    allowSharedKeyAccess: false\n", ""),
    ("modules/storage.bicep", "allowBlobPublicAccess: false", "allowBlobPublicAccess: true"),
    ("modules/storage.bicep", "'TLS1_2'", "'TLS1_0'"),
    ("modules/storage.bicep", "supportsHttpsTrafficOnly: true", "supportsHttpsTrafficOnly: false"),
    ("modules/storage.bicep", "publicAccess: 'None'", "publicAccess: 'Blob'"),
    ("modules/serviceBus.bicep", "disableLocalAuth: true", "disableLocalAuth: false"),
    ("modules/serviceBus.bicep", "minimumTlsVersion: '1.2'", "minimumTlsVersion: '1.0'"),
    ("modules/serviceBus.bicep", "requiresDuplicateDetection: true", "requiresDuplicateDetection: false"),
    ("modules/serviceBus.bicep", "    deadLetteringOnMessageExpiration: true\n", ""),
    ("modules/model.bicep", "disableLocalAuth: true", "disableLocalAuth: false"),
    ("modules/model.bicep", "'NoAutoUpgrade'", "'OnceNewDefaultVersionAvailable'"),
    ("modules/mail.bicep", "disableLocalAuth: true", "disableLocalAuth: isOpen"),
    ("modules/monitoring.bicep", "    DisableLocalAuth: true\n", ""),
    ("modules/monitoring.bicep", "disableLocalAuth: true", "disableLocalAuth: false"),
    ("modules/keyVault.bicep", "enableRbacAuthorization: true", "enableRbacAuthorization: false"),
    ("modules/keyVault.bicep", "@secure()\nparam databricksToken", "param databricksToken"),
    ("modules/functionApp.bicep", "httpsOnly: true", "httpsOnly: false"),
    ("modules/functionApp.bicep", "ftpsState: 'Disabled'", "ftpsState: 'AllAllowed'"),
    ("modules/functionApp.bicep", "minTlsVersion: '1.2'", "minTlsVersion: '1.1'"),
    ("modules/functionApp.bicep", "allow: false", "allow: true"),
    ("modules/roles.bicep", "principalType: 'ServicePrincipal'", "principalType: 'User'"),
    ("modules/roles.bicep", "  scope: namespace\n", ""),
    ("modules/modelAccess.bicep", "name: guid(account.id, principalId, openAiUser)", "name: openAiUser"),
    ("main.bicep", "DATABRICKS_CLIENT_ID: databricksClientId", "DATABRICKS_CLIENT_ID: databricksToken"),
    ("main.bicep", "string = databricksHost", "string = databricksToken"),
    ("main.bicep", "customDomain: customMailDomain", "customDomain: databricksToken"),
)


@pytest.mark.parametrize(("name", "right", "wrong"), MUTANTS)
def test_every_weakening_of_the_real_files_is_caught(name: str, right: str, wrong: str) -> None:
    original = read(name)
    assert right in original.text
    assert findings(BicepFile(Path(original.path), original.text.replace(right, wrong))) != []
