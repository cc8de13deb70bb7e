// Everything that the agent needs in Azure, in a resource group of its own. `azd up` deploys it and then the app.
// Databricks is not touched: docs/databricks_access.md says how its workspace lets the identity in.
targetScope = 'subscription'

// --- Where, and for which workspace

@description('Name of this installation, such as `prod`: the resource group and the tags carry it.')
@minLength(1)
@maxLength(64)
param environmentName string

@description('Azure region; it must offer Flex Consumption.')
@minLength(1)
param location string

@description('URL of the Databricks workspace, such as https://adb-1234567890123456.7.azuredatabricks.net; several: separated by commas, then with the identity only.')
@minLength(8)
param databricksHost string

@description('Addresses that are told about failures nobody else is told about, and about alerts; several: separated by commas.')
@minLength(6)
param escalationEmails string

// --- What the agent may do

@description('What it does by itself: nothing; only say what it would do (observe); plain repairs too (retry); changes of parameters and compute too (full). A tag on a job overrides it.')
@allowed(['off', 'observe', 'retry', 'full'])
param defaultMode string = 'observe'

@description('Minutes between two looks for failures; must divide an hour evenly.')
@allowed([1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30])
param findFailuresMinutes int = 5

@description('Ids of the only jobs it looks after, separated by commas; empty = all that its identity may see.')
param jobIds string = ''

@description('Tags, name to value, such as { "team": "orders" }: only jobs that carry all of them are looked after; empty = all.')
param jobTags object = {}

@description('Who is mailed about a job: alias, as in its tag failure-agent-owner, to addresses, separated by commas.')
param owners object = {}

@description('Retries per failure, at most.')
@minValue(0)
@maxValue(10)
param maxRetryAttempts int = 3

@description('Domains, separated by commas, in which an address that stands on a job may be mailed; empty = none.')
param allowedRecipientDomains string = ''

@description('When the model is asked: never, only where the rules are not sure, or always.')
@allowed(['never', 'unsure', 'always'])
param aiMode string = 'unsure'

@description('Further app settings, name to text, such as { "MAX_WORKERS": "16" }: see docs/settings.md. What this file sets itself wins.')
param extraAppSettings object = {}

// --- How it signs in to Databricks (empty = with its managed identity, which needs no secret)

@description('Personal access token of Databricks; kept in a key vault, which exists only for such secrets.')
@secure()
param databricksToken string = ''

@description('Client id of a Databricks service principal with an OAuth secret.')
@maxLength(64)
param databricksClientId string = ''

@description('The OAuth secret of that service principal; kept in the key vault.')
@secure()
param databricksClientSecret string = ''

// --- The model

@description('Where the model is: a new Azure OpenAI account, an existing one, or none (rules decide alone).')
@allowed(['new', 'existing', 'none'])
param modelSource string = 'new'

@description('Resource id of the existing Azure OpenAI account; with modelSource `existing` only.')
@maxLength(512)
param existingModelAccountId string = ''

@description('Name of the model deployment: of the existing one, or for the new one.')
@minLength(2)
@maxLength(64)
param modelDeploymentName string = 'diagnosis'

@description('Model of the new deployment. Retirement dates: https://aka.ms/oai/models.')
@minLength(1)
@maxLength(64)
param modelName string = 'gpt-5-mini'

@description('Version of that model; it is never upgraded by itself.')
@minLength(1)
@maxLength(32)
param modelVersion string = '2025-08-07'

@description('Kind of the new deployment: requests are processed anywhere, in the data zone, or in the region alone.')
@allowed(['GlobalStandard', 'DataZoneStandard', 'Standard'])
param modelSku string = 'GlobalStandard'

@description('Thousands of tokens per minute of the new deployment.')
@minValue(1)
@maxValue(10000)
param modelCapacity int = 50

@description('Azure region of the new account; empty = as the rest.')
@maxLength(64)
param modelLocation string = ''

// --- E-mail

@description('Where mails and addresses are stored at rest. It cannot be changed later.')
@allowed([
  'Africa'
  'Asia Pacific'
  'Australia'
  'Brazil'
  'Canada'
  'Europe'
  'France'
  'Germany'
  'India'
  'Japan'
  'Korea'
  'Norway'
  'Switzerland'
  'UAE'
  'UK'
  'United States'
])
param mailDataLocation string = 'Europe'

@description('Your own domain for mails, such as agent.example.com; empty = a domain of Azure, which may send 10 mails an hour.')
@maxLength(253)
param customMailDomain string = ''

@description('Set it once the domain\'s DNS records (output MAIL_DOMAIN_RECORDS) are verified; until then Azure\'s domain sends.')
param customMailDomainVerified bool = false

@description('Mails per hour that the domain may send: 10 with Azure\'s, 100 with your own, more after a support ticket.')
@minValue(1)
@maxValue(100000)
param mailQuotaPerHour int = !empty(customMailDomain) && customMailDomainVerified ? 100 : 10

// --- Size

@description('Instances for HTTP that are always there, and paid for; 0 = the first call after a pause waits for a cold start.')
@minValue(0)
@maxValue(20)
param alwaysReadyHttp int = 0

@description('Most instances that one function may have. Times maxConcurrentCalls in host.json, it bounds the questions to the model that are under way.')
@minValue(1)
@maxValue(1000)
param maximumInstanceCount int = 40

@description('Memory of an instance, in MB.')
@allowed([512, 2048, 4096])
param instanceMemoryMB int = 2048

@description('Replication of the storage account that holds the decision history.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param storageSku string = 'Standard_LRS'

@description('Service Bus Data Owner instead of Receiver and Sender: only if queues do not wake the app.')
param serviceBusDataOwner bool = false

// --- Network that exists

@description('Subnet for the app\'s outgoing calls, delegated to Microsoft.App/environments; empty = no virtual network.')
@maxLength(512)
param integrationSubnetId string = ''

@description('Subnet for private endpoints of storage, model and key vault, which are then closed to the public; needs integrationSubnetId. Service Bus Standard and Communication Services have none.')
@maxLength(512)
param privateEndpointSubnetId string = ''

@description('Resource ids of private DNS zones, by sub-resource: blob, table, account (model), vault. Left out = you care for DNS, by policy for example.')
param privateDnsZoneIds object = {}

// --- Logs and alerts

@description('Log Analytics workspace that exists; empty = a new one.')
@maxLength(512)
param logWorkspaceId string = ''

@description('Days that a new workspace keeps its logs.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Gigabytes a day that a new workspace accepts.')
@minValue(1)
@maxValue(1000)
param logDailyQuotaGb int = 5

@description('Diagnostic logs of storage, Service Bus, e-mail, model and key vault, into the workspace in use.')
param diagnosticSettings bool = true

@description('Where people read the runbook; alerts add the section.')
@minLength(1)
@maxLength(512)
param runbook string = 'docs/runbook.md'

var token = toLower(uniqueString(subscription().id, environmentName, location))
var tags = { 'azd-env-name': environmentName }
var tablePrefix = 'failureagent'
var storageAccountName = 'st${token}'
var keyVaultName = 'kv-${token}'

var hasToken = !empty(databricksToken)
var hasClientSecret = !empty(databricksClientSecret)
var hasKeyVault = hasToken || hasClientSecret
var hasModel = modelSource != 'none'

// The messages of fail() end the deployment before anything is made.
var isPrivate = empty(privateEndpointSubnetId) ? false : (empty(integrationSubnetId) ? fail('privateEndpointSubnetId needs integrationSubnetId: without it the app cannot reach what is closed to the public.') : true)
var existingModelParts = split(modelSource == 'existing' && empty(existingModelAccountId) ? fail('modelSource is existing: set existingModelAccountId to the resource id of the Azure OpenAI account.') : existingModelAccountId, '/')
var modelSubscriptionId = modelSource == 'existing' ? existingModelParts[2] : subscription().subscriptionId
var modelGroupName = modelSource == 'existing' ? existingModelParts[4] : group.name
var modelAccountName = modelSource == 'existing' ? last(existingModelParts) : 'cog-${token}'

resource group 'Microsoft.Resources/resourceGroups@2025-04-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

module identity 'modules/identity.bicep' = {
  scope: group
  params: {
    name: 'id-${token}'
    location: location
    tags: tags
  }
}

module monitoring 'modules/monitoring.bicep' = {
  scope: group
  params: {
    workspaceName: 'log-${token}'
    appInsightsName: 'appi-${token}'
    location: location
    tags: tags
    existingWorkspaceId: logWorkspaceId
    retentionDays: logRetentionDays
    dailyQuotaGb: logDailyQuotaGb
  }
}

var diagnosticsWorkspaceId = diagnosticSettings ? monitoring.outputs.workspaceId : ''

module storage 'modules/storage.bicep' = {
  scope: group
  params: {
    name: storageAccountName
    location: location
    tags: tags
    sku: storageSku
    tablePrefix: tablePrefix
    isPrivate: isPrivate
    diagnosticsWorkspaceId: diagnosticsWorkspaceId
  }
}

module serviceBus 'modules/serviceBus.bicep' = {
  scope: group
  params: {
    name: 'sb-${token}'
    location: location
    tags: tags
    diagnosticsWorkspaceId: diagnosticsWorkspaceId
  }
}

module mail 'modules/mail.bicep' = {
  scope: group
  params: {
    communicationServiceName: 'acs-${token}'
    emailServiceName: 'email-${token}'
    tags: tags
    dataLocation: mailDataLocation
    customDomain: customMailDomain
    customDomainVerified: customMailDomainVerified
    diagnosticsWorkspaceId: diagnosticsWorkspaceId
  }
}

module model 'modules/model.bicep' = if (modelSource == 'new') {
  scope: group
  params: {
    name: 'cog-${token}'
    location: empty(modelLocation) ? location : modelLocation
    tags: tags
    deploymentName: modelDeploymentName
    modelName: modelName
    modelVersion: modelVersion
    sku: modelSku
    capacity: modelCapacity
    isPrivate: isPrivate
    diagnosticsWorkspaceId: diagnosticsWorkspaceId
  }
}

module modelAccess 'modules/modelAccess.bicep' = if (hasModel) {
  scope: resourceGroup(modelSubscriptionId, modelGroupName)
  params: {
    accountName: modelAccountName
    principalId: identity.outputs.principalId
  }
  dependsOn: [model]
}

module keyVault 'modules/keyVault.bicep' = if (hasKeyVault) {
  scope: group
  params: {
    name: keyVaultName
    location: location
    tags: tags
    databricksToken: databricksToken
    databricksClientSecret: databricksClientSecret
    isPrivate: isPrivate
    diagnosticsWorkspaceId: diagnosticsWorkspaceId
  }
}

module roles 'modules/roles.bicep' = {
  scope: group
  params: {
    principalId: identity.outputs.principalId
    storageAccountName: storage.outputs.name
    serviceBusNamespaceName: serviceBus.outputs.name
    appInsightsName: monitoring.outputs.appInsightsName
    communicationServiceName: mail.outputs.communicationServiceName
    keyVaultName: hasKeyVault ? keyVault!.outputs.name : ''
    serviceBusDataOwner: serviceBusDataOwner
  }
}

module privateEndpoints 'modules/privateEndpoints.bicep' = if (isPrivate) {
  scope: group
  params: {
    subnetId: privateEndpointSubnetId
    location: location
    tags: tags
    targets: concat(
      [
        {
          name: 'pep-blob-${token}'
          resourceId: storage.outputs.resourceId
          groupId: 'blob'
          dnsZoneId: privateDnsZoneIds.?blob ?? ''
        }
        {
          name: 'pep-table-${token}'
          resourceId: storage.outputs.resourceId
          groupId: 'table'
          dnsZoneId: privateDnsZoneIds.?table ?? ''
        }
      ],
      modelSource == 'new' ? [
        {
          name: 'pep-model-${token}'
          resourceId: model!.outputs.resourceId
          groupId: 'account'
          dnsZoneId: privateDnsZoneIds.?account ?? ''
        }
      ] : [],
      hasKeyVault ? [
        {
          name: 'pep-vault-${token}'
          resourceId: keyVault!.outputs.resourceId
          groupId: 'vault'
          dnsZoneId: privateDnsZoneIds.?vault ?? ''
        }
      ] : []
    )
  }
}

var modelSettings = {
  AZURE_OPENAI_ENDPOINT: hasModel ? modelAccess!.outputs.endpoint : ''
  AZURE_OPENAI_DEPLOYMENT: hasModel ? modelDeploymentName : ''
}
var secretSettings = {
  DATABRICKS_TOKEN: hasToken ? '@Microsoft.KeyVault(VaultName=${keyVaultName};SecretName=databricks-token)' : ''
  DATABRICKS_CLIENT_ID: databricksClientId
  DATABRICKS_CLIENT_SECRET: hasClientSecret ? '@Microsoft.KeyVault(VaultName=${keyVaultName};SecretName=databricks-client-secret)' : ''
}
var choiceSettings = {
  MAX_RETRY_ATTEMPTS: string(maxRetryAttempts)
  AI_MODE: aiMode
}
// Not given: what extraAppSettings say of them stays.
var jobIdSettings = empty(jobIds) ? {} : { JOB_IDS: jobIds }
var domainSettings = empty(allowedRecipientDomains) ? {} : { ALLOWED_RECIPIENT_DOMAINS: allowedRecipientDomains }
var jobTagSettings = empty(jobTags) ? {} : { JOB_TAGS: string(jobTags) }
var ownerSettings = empty(owners) ? {} : { OWNERS: string(owners) }
var ownSettings = {
  AZURE_CLIENT_ID: identity.outputs.clientId
  DATABRICKS_HOST: databricksHost
  SERVICE_BUS_CONNECTION__fullyQualifiedNamespace: serviceBus.outputs.host
  TABLES_ENDPOINT: storage.outputs.tableEndpoint
  TABLE_PREFIX: tablePrefix
  ACS_ENDPOINT: mail.outputs.endpoint
  SENDER_EMAIL: mail.outputs.senderEmail
  ESCALATION_EMAILS: escalationEmails
  DEFAULT_MODE: defaultMode
  FIND_FAILURES_SCHEDULE: '0 */${findFailuresMinutes} * * * *'
}

module app 'modules/functionApp.bicep' = {
  scope: group
  params: {
    name: 'func-${token}'
    planName: 'plan-${token}'
    location: location
    tags: tags
    serviceName: 'app'
    identityId: identity.outputs.resourceId
    identityClientId: identity.outputs.clientId
    deploymentContainerUrl: storage.outputs.deploymentContainerUrl
    hostBlobEndpoint: storage.outputs.blobEndpoint
    appInsightsName: monitoring.outputs.appInsightsName
    alwaysReadyHttp: alwaysReadyHttp
    maximumInstanceCount: maximumInstanceCount
    instanceMemoryMB: instanceMemoryMB
    integrationSubnetId: integrationSubnetId
    agentSettings: union(extraAppSettings, choiceSettings, jobIdSettings, domainSettings, jobTagSettings, ownerSettings, modelSettings, secretSettings, ownSettings)
  }
  dependsOn: [roles, privateEndpoints] // the app starts with its rights and its network in place
}

module alerts 'modules/alerts.bicep' = {
  scope: group
  params: {
    name: environmentName
    location: location
    tags: tags
    escalationEmails: escalationEmails
    workspaceId: monitoring.outputs.workspaceId
    appInsightsId: monitoring.outputs.appInsightsId
    serviceBusNamespaceId: serviceBus.outputs.resourceId
    findFailuresMinutes: findFailuresMinutes
    mailQuotaPerHour: mailQuotaPerHour
    runbook: runbook
  }
}

// --- Outputs. Those named like settings are what `python -m agent` needs at a desk: `azd env get-values > .env`. Your own
// account needs its rights then; none are given here.

@description('Resource group of everything.')
output AZURE_RESOURCE_GROUP string = group.name

@description('Name of the function app.')
output FUNCTION_APP_NAME string = app.outputs.name

@description('Address of the app, for `python -m agent check --app`.')
output APP_URL string = app.outputs.url

@description('Answers 200 if the app is set up and may act, else 503 with the problem named.')
output HEALTH_URL string = '${app.outputs.url}/api/health'

@description('Application id under which the identity is added to the Databricks workspace.')
output IDENTITY_CLIENT_ID string = identity.outputs.clientId

@description('Object id of the identity, for role assignments of your own.')
output IDENTITY_PRINCIPAL_ID string = identity.outputs.principalId

@description('The Databricks workspaces, as given.')
output DATABRICKS_HOST string = databricksHost

@description('Who is told, as given.')
output ESCALATION_EMAILS string = escalationEmails

@description('Host of the Service Bus namespace.')
output SERVICE_BUS_CONNECTION__fullyQualifiedNamespace string = serviceBus.outputs.host

@description('Table service that holds the history.')
output TABLES_ENDPOINT string = storage.outputs.tableEndpoint

@description('Endpoint of Communication Services.')
output ACS_ENDPOINT string = mail.outputs.endpoint

@description('Sender of all mails.')
output SENDER_EMAIL string = mail.outputs.senderEmail

@description('DNS records to set for your own mail domain; empty without one.')
output MAIL_DOMAIN_RECORDS object = mail.outputs.domainRecords

@description('Endpoint of the model; empty = rules decide alone.')
output AZURE_OPENAI_ENDPOINT string = modelSettings.AZURE_OPENAI_ENDPOINT

@description('Deployment of the model; empty = rules decide alone.')
output AZURE_OPENAI_DEPLOYMENT string = modelSettings.AZURE_OPENAI_DEPLOYMENT

@description('Resource id of the workspace with the logs.')
output LOG_ANALYTICS_ID string = monitoring.outputs.workspaceId
