// The one identity of the app: it signs in everywhere, so no key has to be kept anywhere.

@description('Name of the user-assigned identity.')
@minLength(3)
param name string

@description('Azure region.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: name
  location: location
  tags: tags
}

@description('Resource id, for the function app.')
output resourceId string = identity.id

@description('Application (client) id: the name under which the identity is added to a Databricks workspace.')
output clientId string = identity.properties.clientId

@description('Object id, for role assignments.')
output principalId string = identity.properties.principalId
