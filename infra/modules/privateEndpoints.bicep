// Private endpoints in a subnet of yours.

@description('Resource id of the subnet for the endpoints.')
@minLength(1)
param subnetId string

@description('Azure region of the subnet.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

@description('Something to be reached: a resource, its sub-resource, and its private DNS zone (empty = you care for DNS).')
type target = {
  name: string
  resourceId: string
  groupId: string
  dnsZoneId: string
}

@description('What is to be reached.')
@minLength(1)
param targets target[]

resource endpoints 'Microsoft.Network/privateEndpoints@2024-05-01' = [for target in targets: {
  name: target.name
  location: location
  tags: tags
  properties: {
    subnet: {
      id: subnetId
    }
    privateLinkServiceConnections: [
      {
        name: target.name
        properties: {
          privateLinkServiceId: target.resourceId
          groupIds: [target.groupId]
        }
      }
    ]
  }
}]

var targetsWithZone = filter(targets, target => !empty(target.dnsZoneId))

resource dnsGroups 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = [for target in targetsWithZone: {
  name: '${target.name}/default'
  properties: {
    privateDnsZoneConfigs: [
      {
        name: target.groupId
        properties: {
          privateDnsZoneId: target.dnsZoneId
        }
      }
    ]
  }
  dependsOn: [endpoints]
}]
