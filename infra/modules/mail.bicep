// E-mail: Azure Communication Services with a domain of Azure's, or with yours once its DNS records are verified.

@description('Name of the Communication Services resource.')
@minLength(1)
@maxLength(63)
param communicationServiceName string

@description('Name of the e-mail service.')
@minLength(1)
@maxLength(63)
param emailServiceName string

@description('Tags for every resource.')
param tags object

@description('Where mails and addresses are stored at rest.')
param dataLocation string

@description('Your own domain, such as agent.example.com; empty = a domain of Azure only.')
param customDomain string

@description('Whether mails go out from your own domain: only after its DNS records have been verified.')
param customDomainVerified bool

@description('Workspace that receives diagnostic logs; empty = none.')
param diagnosticsWorkspaceId string

var sendsFromCustomDomain = !empty(customDomain) && customDomainVerified

resource emailService 'Microsoft.Communication/emailServices@2025-09-01' = {
  name: emailServiceName
  location: 'global'
  tags: tags
  properties: {
    dataLocation: dataLocation
  }
}

resource azureDomain 'Microsoft.Communication/emailServices/domains@2025-09-01' = {
  parent: emailService
  name: 'AzureManagedDomain'
  location: 'global'
  tags: tags
  properties: {
    domainManagement: 'AzureManaged'
    userEngagementTracking: 'Disabled'
  }
}

resource ownDomain 'Microsoft.Communication/emailServices/domains@2025-09-01' = if (!empty(customDomain)) {
  parent: emailService
  name: empty(customDomain) ? 'none' : customDomain
  location: 'global'
  tags: tags
  properties: {
    domainManagement: 'CustomerManaged'
    userEngagementTracking: 'Disabled'
  }
}

resource communicationService 'Microsoft.Communication/communicationServices@2025-09-01' = {
  name: communicationServiceName
  location: 'global'
  tags: tags
  properties: {
    dataLocation: dataLocation
    disableLocalAuth: true
    linkedDomains: [sendsFromCustomDomain ? ownDomain.id : azureDomain.id]
  }
}

// The second log holds recipients' addresses: it is how one learns that a mail was dropped on its way.
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (!empty(diagnosticsWorkspaceId)) {
  name: 'to-workspace'
  scope: communicationService
  properties: {
    workspaceId: diagnosticsWorkspaceId
    logs: [
      {
        category: 'EmailSendMailOperational'
        enabled: true
      }
      {
        category: 'EmailStatusUpdateOperational'
        enabled: true
      }
    ]
  }
}

@description('Name of the Communication Services resource.')
output communicationServiceName string = communicationService.name

@description('For the app setting ACS_ENDPOINT.')
output endpoint string = 'https://${communicationService.properties.hostName}'

@description('For the app setting SENDER_EMAIL: every domain has this sender from the start.')
output senderEmail string = 'DoNotReply@${sendsFromCustomDomain ? customDomain : azureDomain.properties.fromSenderDomain}'

@description('DNS records that prove that your own domain is yours; empty without one.')
output domainRecords object = empty(customDomain) ? {} : ownDomain!.properties.verificationRecords
