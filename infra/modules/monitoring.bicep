// Logs and traces: a Log Analytics workspace (or yours) and Application Insights that accepts no keys.

@description('Name of the workspace, where one is made.')
@minLength(4)
param workspaceName string

@description('Name of the Application Insights component.')
@minLength(1)
param appInsightsName string

@description('Azure region.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

@description('Resource id of a workspace that exists; empty = a new one.')
param existingWorkspaceId string

@description('Days that a new workspace keeps its logs.')
@minValue(30)
@maxValue(730)
param retentionDays int

@description('Gigabytes a day that a new workspace accepts, so that a log storm has a price limit.')
@minValue(1)
param dailyQuotaGb int

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' = if (empty(existingWorkspaceId)) {
  name: workspaceName
  location: location
  tags: tags
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: retentionDays
    features: {
      disableLocalAuth: true
      enableLogAccessUsingOnlyResourcePermissions: true
    }
    workspaceCapping: {
      dailyQuotaGb: dailyQuotaGb
    }
  }
}

var workspaceId = empty(existingWorkspaceId) ? workspace.id : existingWorkspaceId

resource appInsights 'Microsoft.Insights/components@2020-02-02' = {
  name: appInsightsName
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    DisableLocalAuth: true
    WorkspaceResourceId: workspaceId
  }
}

@description('Resource id of the workspace in use.')
output workspaceId string = workspaceId

@description('Resource id of the Application Insights component.')
output appInsightsId string = appInsights.id

@description('Name of the Application Insights component.')
output appInsightsName string = appInsights.name
