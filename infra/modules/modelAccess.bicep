// Lets the app ask a model: the right on the account, wherever it is, and the account's endpoint.

@description('Name of the Azure OpenAI account.')
@minLength(2)
param accountName string

@description('Object id of the identity.')
@minLength(36)
param principalId string

var openAiUser = '5e0bd9bd-7b93-4f28-af87-19fc36ad61bd'

resource account 'Microsoft.CognitiveServices/accounts@2025-06-01' existing = {
  name: accountName
}

resource askModel 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: account
  name: guid(account.id, principalId, openAiUser)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', openAiUser)
    description: 'Cognitive Services OpenAI User: ask the model about failures that rules are not sure of. No right to deploy, fine-tune or read keys.'
  }
}

@description('For the app setting AZURE_OPENAI_ENDPOINT.')
output endpoint string = account.properties.endpoint
