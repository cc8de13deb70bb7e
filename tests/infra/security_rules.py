"""What no Bicep file of this project may do. Each finding is one line; no finding, no objection."""

import re
from collections.abc import Iterator

from tests.infra.bicep import INFRA, BicepFile, Resource, Tree, decorators, mentions, places, read

TLS = ("1.2", "1.3")

REQUIRED: dict[str, dict[str, tuple[object, ...]]] = {
    "Microsoft.Authorization/roleAssignments": {"properties.principalType": ("ServicePrincipal",)},
    "Microsoft.CognitiveServices/accounts": {"properties.disableLocalAuth": (True,)},
    "Microsoft.CognitiveServices/accounts/deployments": {"properties.versionUpgradeOption": ("NoAutoUpgrade",)},
    "Microsoft.Communication/communicationServices": {"properties.disableLocalAuth": (True,)},
    "Microsoft.Communication/emailServices": {},
    "Microsoft.Communication/emailServices/domains": {"properties.userEngagementTracking": ("Disabled",)},
    "Microsoft.Insights/actionGroups": {},
    "Microsoft.Insights/components": {"properties.DisableLocalAuth": (True,)},
    "Microsoft.Insights/diagnosticSettings": {},
    "Microsoft.Insights/metricAlerts": {"properties.enabled": (True,)},
    "Microsoft.Insights/scheduledQueryRules": {"properties.enabled": (True,)},
    "Microsoft.KeyVault/vaults": {
        "properties.enableRbacAuthorization": (True,),
        "properties.enablePurgeProtection": (True,),
        "properties.enableSoftDelete": (True,),
    },
    "Microsoft.KeyVault/vaults/secrets": {},
    "Microsoft.ManagedIdentity/userAssignedIdentities": {},
    "Microsoft.Network/privateEndpoints": {},
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": {},
    "Microsoft.OperationalInsights/workspaces": {"properties.features.disableLocalAuth": (True,)},
    "Microsoft.Resources/resourceGroups": {},
    "Microsoft.ServiceBus/namespaces": {
        "properties.disableLocalAuth": (True,),
        "properties.minimumTlsVersion": TLS,
    },
    "Microsoft.ServiceBus/namespaces/queues": {
        "properties.requiresDuplicateDetection": (True,),
        "properties.deadLetteringOnMessageExpiration": (True,),
    },
    "Microsoft.Storage/storageAccounts": {
        "properties.allowBlobPublicAccess": (False,),
        "properties.allowCrossTenantReplication": (False,),
        "properties.allowSharedKeyAccess": (False,),
        "properties.minimumTlsVersion": ("TLS1_2", "TLS1_3"),
        "properties.supportsHttpsTrafficOnly": (True,),
    },
    "Microsoft.Storage/storageAccounts/blobServices": {},
    "Microsoft.Storage/storageAccounts/blobServices/containers": {"properties.publicAccess": ("None",)},
    "Microsoft.Storage/storageAccounts/tableServices": {},
    "Microsoft.Storage/storageAccounts/tableServices/tables": {},
    "Microsoft.Web/serverfarms": {},
    "Microsoft.Web/sites": {
        "properties.httpsOnly": (True,),
        "properties.siteConfig.ftpsState": ("Disabled",),
        "properties.siteConfig.minTlsVersion": TLS,
        "properties.siteConfig.scmMinTlsVersion": TLS,
    },
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies": {"properties.allow": (False,)},
    "Microsoft.Web/sites/config": {},
}
"""For each type of resource that may be used: properties that must have one of these literal values."""

KEYS = re.compile(
    r"\blist[A-Z]\w*\s*\(|SharedAccessKey|SharedAccessSignature|AccountKey|\b(primary|secondary)(Key|ConnectionString)\b"
    r"|InstrumentationKey|\bsas[A-Z]\w*|authorizationRules",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(r"(token|secret|password|apikey|accesskey)s?$", re.IGNORECASE)


def findings(file: BicepFile) -> list[str]:
    """Everything that is wrong in a file."""
    rules = (keys_in, settings_of_resources, secret_parameters, leaked_secrets, secrets_in_outputs)
    return [finding for rule in rules for finding in rule(file)]


def keys_in(file: BicepFile) -> Iterator[str]:
    """Keys and whatever gives keys: identities are used instead."""
    for found in KEYS.finditer(file.code):
        yield f"a key: {found.group()}"


def settings_of_resources(file: BicepFile) -> Iterator[str]:
    for resource in file.resources:
        if resource.type not in REQUIRED:
            yield f"{resource.symbol}: no rule says how a {resource.type} is made safe"
        elif not resource.existing:
            yield from wrong_values(resource)


def wrong_values(resource: Resource) -> Iterator[str]:
    for name, allowed in REQUIRED[resource.type].items():
        value = resource.value(name)
        if not any(type(value) is type(right) and value == right for right in allowed):
            yield f"{resource.symbol}: {name} is {value}, not {' or '.join(map(str, allowed))}"
    if resource.type == "Microsoft.Authorization/roleAssignments":
        yield from wrong_role_assignment(resource)


def wrong_role_assignment(resource: Resource) -> Iterator[str]:
    if not resource.value("properties.description"):
        yield f"{resource.symbol}: does not say why"
    if not resource.value("scope"):
        yield f"{resource.symbol}: holds for the whole resource group"
    name = resource.value("name")
    if not (isinstance(name, dict) and name.get("function", {}).get("type") == "guid"):
        yield f"{resource.symbol}: its name is no guid(), so a second deployment would fail"


def secret_parameters(file: BicepFile) -> Iterator[str]:
    for name, parameter in file.parameters.items():
        secure = "secure" in decorators(parameter)
        if SECRET_NAME.search(name) and parameter["type"] == "string" and not secure:
            yield f"parameter {name} is not @secure"
        if secure and parameter["default"]:
            yield f"parameter {name} has a default that everybody can read"


def secure_names(file: BicepFile) -> set[str]:
    return {name for name, parameter in file.parameters.items() if "secure" in decorators(parameter)}


def leaked_secrets(file: BicepFile) -> Iterator[str]:
    """A secret may be asked whether it is empty, be handed to a @secure parameter, and be put into a key vault."""
    vault_secrets = {resource.symbol for resource in file.of_type("Microsoft.KeyVault/vaults/secrets")}
    declarations: list[tuple[str, str, Tree]] = [
        *(("variable", symbol, variable) for symbol, variable in file.variables.items()),
        *(("module", symbol, module) for symbol, module in file.modules.items()),
        *(("resource", resource.symbol, resource.body) for resource in file.resources),
    ]
    for kind, symbol, declaration in declarations:
        kept_secret = parameters_kept_secret(file, declaration) if kind == "module" else set()
        for path, text in places(declaration):
            into_vault = symbol in vault_secrets and path == ("properties", "value")
            handed_on = path[-2:-1] == ("params",) and path[-1] in kept_secret
            asked = path[-1] == "item_to_test"  # of empty()
            for secret in secure_names(file):
                if mentions(text, secret) and not (into_vault or handed_on or asked):
                    yield f"{kind} {symbol}: {secret} leaves its place at {'.'.join(path)}"


def parameters_kept_secret(file: BicepFile, module: Tree) -> set[str]:
    """The parameters that a module takes and that are @secure there."""
    return secure_names(read(str((file.path.parent / module["detail"]["path"]).relative_to(INFRA))))


def secrets_in_outputs(file: BicepFile) -> Iterator[str]:
    for name, output in file.outputs.items():
        texts = [text for _, text in places(output["value"])]
        leaks = any(mentions(text, secret) for text in texts for secret in secure_names(file))
        telling = SECRET_NAME.search(name) or any(re.search(r"connectionstring", text, re.IGNORECASE) for text in texts)
        if leaks or telling:
            yield f"output {name} shows a secret"
