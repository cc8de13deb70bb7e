// The queues between the steps, made from the definition that the local stack uses too.

@description('Name of the namespace.')
@minLength(6)
@maxLength(50)
param name string

@description('Azure region.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

@description('Workspace that receives diagnostic logs; empty = none.')
param diagnosticsWorkspaceId string

var queues = loadJsonContent('../../local/queues.json')

resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' = {
  name: name
  location: location
  tags: tags
  sku: {
    name: 'Standard' // Basic has no duplicate detection
    tier: 'Standard'
  }
  properties: {
    disableLocalAuth: true
    minimumTlsVersion: '1.2'
    publicNetworkAccess: 'Enabled' // only Premium namespaces have private endpoints; every call needs an Entra token
  }
}

// Duplicate detection cannot be changed later: a queue that was made without it must be made anew.
resource namespaceQueues 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = [for queue in queues: {
  parent: namespace
  name: queue.name
  properties: {
    requiresDuplicateDetection: true
    duplicateDetectionHistoryTimeWindow: 'PT${queue.duplicate_detection_seconds}S'
    lockDuration: 'PT${queue.lock_seconds}S'
    maxDeliveryCount: queue.max_delivery_count
    defaultMessageTimeToLive: 'PT${queue.default_ttl_seconds}S'
    deadLetteringOnMessageExpiration: true
  }
}]

resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (!empty(diagnosticsWorkspaceId)) {
  name: 'to-workspace'
  scope: namespace
  properties: {
    workspaceId: diagnosticsWorkspaceId
    logs: [
      {
        category: 'OperationalLogs'
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

@description('Resource id of the namespace.')
output resourceId string = namespace.id

@description('Name of the namespace.')
output name string = namespace.name

@description('Host of the namespace, for the app setting SERVICE_BUS_CONNECTION__fullyQualifiedNamespace.')
output host string = split(split(namespace.properties.serviceBusEndpoint, '://')[1], ':')[0]
