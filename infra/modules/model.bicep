// The language model: an Azure OpenAI account of its own, without keys, and one deployment.

@description('Name of the account; also its host name.')
@minLength(2)
@maxLength(64)
param name string

@description('Azure region that offers the model.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

@description('Name of the deployment; the app setting AZURE_OPENAI_DEPLOYMENT.')
@minLength(2)
@maxLength(64)
param deploymentName string

@description('Model.')
@minLength(1)
param modelName string

@description('Version of the model.')
@minLength(1)
param modelVersion string

@description('Kind of the deployment: where requests may be processed.')
@minLength(1)
param sku string

@description('Thousands of tokens per minute.')
@minValue(1)
param capacity int

@description('Whether the account is reached through a private endpoint only.')
param isPrivate bool

@description('Workspace that receives diagnostic logs; empty = none.')
param diagnosticsWorkspaceId string

resource account 'Microsoft.CognitiveServices/accounts@2025-06-01' = {
  name: name
  location: location
  tags: tags
  kind: 'OpenAI'
  sku: {
    name: 'S0'
  }
  properties: {
    customSubDomainName: name // Entra tokens are accepted at an account's own host name only
    disableLocalAuth: true
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
    networkAcls: {
      defaultAction: isPrivate ? 'Deny' : 'Allow'
    }
  }
}

// No upgrade by itself: another version may decide otherwise, so it is measured with `agent evaluate` first.
resource deployment 'Microsoft.CognitiveServices/accounts/deployments@2025-06-01' = {
  parent: account
  name: deploymentName
  sku: {
    name: sku
    capacity: capacity
  }
  properties: {
    model: {
      format: 'OpenAI'
      name: modelName
      version: modelVersion
    }
    versionUpgradeOption: 'NoAutoUpgrade'
  }
}

// Who changed what, and figures; not the requests, which hold error texts.
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (!empty(diagnosticsWorkspaceId)) {
  name: 'to-workspace'
  scope: account
  properties: {
    workspaceId: diagnosticsWorkspaceId
    logs: [
      {
        category: 'Audit'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

@description('Resource id of the account.')
output resourceId string = account.id

@description('Name of the deployment.')
output deploymentName string = deployment.name
