// The function app on a Flex Consumption plan. Its identity is how it reaches everything, its own storage included.

@description('Name of the app; also its host name.')
@minLength(2)
@maxLength(60)
param name string

@description('Name of the plan.')
@minLength(1)
param planName string

@description('Azure region.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

@description('Name of the service in azure.yaml, by which azd finds the app.')
@minLength(1)
param serviceName string

@description('Resource id of the identity.')
@minLength(1)
param identityId string

@description('Client id of the identity.')
@minLength(1)
param identityClientId string

@description('Where deployed packages are kept.')
@minLength(1)
param deploymentContainerUrl string

@description('URL of the blob service of the host storage.')
@minLength(1)
param hostBlobEndpoint string

@description('Name of the Application Insights component.')
@minLength(1)
param appInsightsName string

@description('Instances for HTTP that are always there; 0 = the first call after a pause waits for a cold start.')
@minValue(0)
@maxValue(20)
param alwaysReadyHttp int

@description('Most instances that one function may have.')
@minValue(1)
@maxValue(1000)
param maximumInstanceCount int

@description('Memory of an instance.')
@allowed([512, 2048, 4096])
param instanceMemoryMB int

@description('Subnet for outgoing calls, delegated to Microsoft.App/environments; empty = none.')
param integrationSubnetId string

@description('App settings of the agent.')
param agentSettings object

var hostSettings = {
  AzureWebJobsStorage__blobServiceUri: hostBlobEndpoint
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: identityClientId
  SERVICE_BUS_CONNECTION__credential: 'managedidentity'
  SERVICE_BUS_CONNECTION__clientId: identityClientId
  APPLICATIONINSIGHTS_CONNECTION_STRING: appInsights.properties.ConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
  PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY: 'true' // the worker exports traces and metrics, not the host twice
  PYTHON_THREADPOOL_THREAD_COUNT: '16' // sync functions would have five threads on one core otherwise
}

resource appInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: appInsightsName
}

resource plan 'Microsoft.Web/serverfarms@2025-03-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: {
    name: 'FC1'
    tier: 'FlexConsumption'
  }
  properties: {
    reserved: true
  }
}

resource app 'Microsoft.Web/sites@2025-03-01' = {
  name: name
  location: location
  tags: union(tags, { 'azd-service-name': serviceName })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    keyVaultReferenceIdentity: identityId
    virtualNetworkSubnetId: empty(integrationSubnetId) ? null : integrationSubnetId
    siteConfig: {
      ftpsState: 'Disabled'
      http20Enabled: true
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: deploymentContainerUrl
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      runtime: {
        name: 'python'
        version: '3.13'
      }
      scaleAndConcurrency: {
        alwaysReady: alwaysReadyHttp == 0 ? [] : [{ name: 'http', instanceCount: alwaysReadyHttp }]
        maximumInstanceCount: maximumInstanceCount
        instanceMemoryMB: instanceMemoryMB
      }
    }
  }
}

resource settings 'Microsoft.Web/sites/config@2025-03-01' = {
  parent: app
  name: 'appsettings'
  properties: union(agentSettings, hostSettings)
}

resource noFtpPassword 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'ftp'
  properties: {
    allow: false
  }
}

resource noDeploymentPassword 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'scm'
  properties: {
    allow: false
  }
}

@description('Name of the app.')
output name string = app.name

@description('Where the app answers.')
output url string = 'https://${app.properties.defaultHostName}'
