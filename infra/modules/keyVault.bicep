// Secrets of Databricks, for workspaces that cannot take the app's identity. Without such a secret there is no vault.

@description('Name of the vault.')
@minLength(3)
@maxLength(24)
param name string

@description('Azure region.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

@description('Personal access token of Databricks; empty = none.')
@secure()
param databricksToken string

@description('Secret of a Databricks service principal; empty = none.')
@secure()
param databricksClientSecret string

@description('Whether the vault is reached through a private endpoint only.')
param isPrivate bool

@description('Workspace that receives diagnostic logs; empty = none.')
param diagnosticsWorkspaceId string

resource vault 'Microsoft.KeyVault/vaults@2025-05-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    tenantId: tenant().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enablePurgeProtection: true
    enableSoftDelete: true
    softDeleteRetentionInDays: 7
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
    networkAcls: {
      bypass: 'AzureServices'
      defaultAction: isPrivate ? 'Deny' : 'Allow'
    }
  }
}

resource token 'Microsoft.KeyVault/vaults/secrets@2025-05-01' = if (!empty(databricksToken)) {
  parent: vault
  name: 'databricks-token'
  properties: {
    value: databricksToken
    contentType: 'Personal access token; app setting DATABRICKS_TOKEN'
  }
}

resource clientSecret 'Microsoft.KeyVault/vaults/secrets@2025-05-01' = if (!empty(databricksClientSecret)) {
  parent: vault
  name: 'databricks-client-secret'
  properties: {
    value: databricksClientSecret
    contentType: 'OAuth secret of a service principal; app setting DATABRICKS_CLIENT_SECRET'
  }
}

resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (!empty(diagnosticsWorkspaceId)) {
  name: 'to-workspace'
  scope: vault
  properties: {
    workspaceId: diagnosticsWorkspaceId
    logs: [
      {
        category: 'AuditEvent'
        enabled: true
      }
    ]
  }
}

@description('Resource id of the vault.')
output resourceId string = vault.id

@description('Name of the vault.')
output name string = vault.name
