// Every right of the app's identity in this resource group, and why it has it. The one on the model is in modelAccess.bicep.

@description('Object id of the identity.')
@minLength(36)
param principalId string

@description('Name of the storage account.')
@minLength(3)
param storageAccountName string

@description('Name of the Service Bus namespace.')
@minLength(6)
param serviceBusNamespaceName string

@description('Name of the Application Insights component.')
@minLength(1)
param appInsightsName string

@description('Name of the Communication Services resource.')
@minLength(1)
param communicationServiceName string

@description('Name of the key vault; empty = there is none.')
param keyVaultName string

@description('Data Owner instead of Receiver and Sender, where scaling needs the right to read queue lengths.')
param serviceBusDataOwner bool

var blobDataOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
var tableDataContributor = '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'
var serviceBusDataOwnerRole = '090c5cfd-751d-490a-894a-3ce6f1109419'
var serviceBusDataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
var serviceBusDataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'
var metricsPublisher = '3913510d-42f4-4e42-8a64-420c390055eb'
var communicationAndEmailServiceOwner = '09976791-48a7-449e-bb21-39d1a415f350'
var keyVaultSecretsUser = '4633458b-17de-408a-b874-0445c86b69e6'

resource storageAccount 'Microsoft.Storage/storageAccounts@2025-06-01' existing = {
  name: storageAccountName
}

resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' existing = {
  name: serviceBusNamespaceName
}

resource appInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: appInsightsName
}

resource communicationService 'Microsoft.Communication/communicationServices@2025-09-01' existing = {
  name: communicationServiceName
}

resource vault 'Microsoft.KeyVault/vaults@2025-05-01' existing = if (!empty(keyVaultName)) {
  name: empty(keyVaultName) ? 'none' : keyVaultName
}

resource hostStorage 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: storageAccount
  name: guid(storageAccount.id, principalId, blobDataOwner)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataOwner)
    description: 'Storage Blob Data Owner: the Functions host keeps timer locks in blobs and reads the deployed package.'
  }
}

resource history 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: storageAccount
  name: guid(storageAccount.id, principalId, tableDataContributor)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', tableDataContributor)
    description: 'Storage Table Data Contributor: the decision history is three tables.'
  }
}

resource receiveMessages 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!serviceBusDataOwner) {
  scope: namespace
  name: guid(namespace.id, principalId, serviceBusDataReceiver)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)
    description: 'Service Bus Data Receiver: the queue triggers take messages.'
  }
}

resource sendMessages 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!serviceBusDataOwner) {
  scope: namespace
  name: guid(namespace.id, principalId, serviceBusDataSender)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
    description: 'Service Bus Data Sender: each step sends the next one its message.'
  }
}

resource ownMessages 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (serviceBusDataOwner) {
  scope: namespace
  name: guid(namespace.id, principalId, serviceBusDataOwnerRole)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataOwnerRole)
    description: 'Service Bus Data Owner, asked for by a parameter: the host reads queue lengths to scale; Receiver and Sender are not given then.'
  }
}

resource publishTelemetry 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: appInsights
  name: guid(appInsights.id, principalId, metricsPublisher)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', metricsPublisher)
    description: 'Monitoring Metrics Publisher: Application Insights accepts no keys, so telemetry is sent with the identity.'
  }
}

// There is no built-in role that may only send. The scope is this one resource, and it has no other use.
resource sendMail 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: communicationService
  name: guid(communicationService.id, principalId, communicationAndEmailServiceOwner)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId(
      'Microsoft.Authorization/roleDefinitions',
      communicationAndEmailServiceOwner
    )
    description: 'Communication and Email Service Owner: send e-mail; Azure has no narrower built-in role.'
  }
}

resource readSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(keyVaultName)) {
  scope: vault
  name: guid(vault.id, principalId, keyVaultSecretsUser)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', keyVaultSecretsUser)
    description: 'Key Vault Secrets User: app settings refer to the secrets of Databricks.'
  }
}
