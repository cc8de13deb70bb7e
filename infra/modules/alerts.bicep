// What people are told, each with the section of the runbook that says what to do. Every query gives a row only where
// something is wrong; the queries are in infra/queries.

@description('Start of the alerts\' names.')
@minLength(1)
param name string

@description('Azure region.')
@minLength(1)
param location string

@description('Tags for every resource.')
param tags object

@description('Who is told, addresses separated by commas.')
@minLength(3)
param escalationEmails string

@description('Resource id of the workspace that the queries read.')
@minLength(1)
param workspaceId string

@description('Resource id of the Application Insights component, so that a shared workspace is no matter.')
@minLength(1)
param appInsightsId string

@description('Resource id of the Service Bus namespace.')
@minLength(1)
param serviceBusNamespaceId string

@description('Minutes between two looks for failures.')
@minValue(1)
param findFailuresMinutes int

@description('Mails per hour that the e-mail domain may send.')
@minValue(1)
param mailQuotaPerHour int

@description('Where the runbook can be read; each alert adds its section.')
@minLength(1)
param runbook string

var silentIntervals = 3
var followUpMinutes = 1
var auditMinutes = 60
var ingestionMinutes = 10 // telemetry may be this late before silence means anything

var heartbeatQuery = loadTextContent('../queries/no_heartbeat.kql')
var heartbeatOfFindFailures = replace(
  heartbeatQuery,
  '{find_failures_minutes}',
  string(silentIntervals * findFailuresMinutes + ingestionMinutes)
)
var heartbeatOfFollowUp = replace(
  heartbeatOfFindFailures,
  '{follow_up_minutes}',
  string(silentIntervals * followUpMinutes + ingestionMinutes)
)
var heartbeatOfAll = replace(
  heartbeatOfFollowUp,
  '{audit_minutes}',
  string(silentIntervals * auditMinutes + ingestionMinutes)
)

// Severity: 0 critical, 1 error, 2 warning.
var logAlerts = [
  {
    name: 'duplicate-actions'
    title: 'A retry was done twice'
    meaning: 'The hourly audit found a retry in Databricks that was done twice for one decision. Pause the agent.'
    anchor: 'duplicate-actions'
    severity: 0
    window: 'PT2H'
    frequency: 'PT15M'
    query: loadTextContent('../queries/duplicate_actions.kql')
  }
  {
    name: 'no-heartbeat'
    title: 'A timer is silent'
    meaning: 'A timer did not run for three intervals: failures are not found, retries not followed, or nothing is audited.'
    anchor: 'no-heartbeat'
    severity: 1
    window: 'PT6H'
    frequency: 'PT5M'
    query: heartbeatOfAll
  }
  {
    name: 'function-failures'
    title: 'A function keeps failing'
    meaning: 'One function failed more than twice in a quarter of an hour.'
    anchor: 'function-failures'
    severity: 1
    window: 'PT15M'
    frequency: 'PT5M'
    query: loadTextContent('../queries/function_failures.kql')
  }
  {
    name: 'parked-incidents'
    title: 'A failure that nobody was told about'
    meaning: 'In the last hour an incident ended without anybody having been told, as its mail could not be sent.'
    anchor: 'parked-incidents'
    severity: 1
    window: 'PT1H'
    frequency: 'PT15M'
    query: loadTextContent('../queries/parked_incidents.kql')
  }
  {
    name: 'rules-fallback'
    title: 'The model does not answer'
    meaning: 'More than a fifth of the last hour\'s decisions were left to the rules because the model did not answer or was not understood.'
    anchor: 'rules-fallback'
    severity: 2
    window: 'PT1H'
    frequency: 'PT15M'
    query: loadTextContent('../queries/rules_fallback.kql')
  }
  {
    name: 'mail-quota'
    title: 'Mails are running out'
    meaning: 'More than four fifths of the mails that the domain may send in an hour are used up.'
    anchor: 'mail-quota'
    severity: 2
    window: 'PT1H'
    frequency: 'PT5M'
    query: replace(loadTextContent('../queries/mail_quota.kql'), '{mail_quota_per_hour}', string(mailQuotaPerHour))
  }
]

resource actionGroup 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: 'ag-${name}'
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'failagent'
    emailReceivers: [for (address, index) in filter(split(escalationEmails, ','), part => !empty(trim(part))): {
      name: 'escalation-${index}'
      emailAddress: trim(address)
      useCommonAlertSchema: true
    }]
  }
}

resource deadLetters 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'dead-letters-${name}'
  location: 'global'
  tags: tags
  properties: {
    description: 'Messages lie in a dead-letter queue: they could not be understood, or were delivered ten times in vain. ${runbook}#dead-letters'
    severity: 1
    enabled: true
    scopes: [serviceBusNamespaceId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT5M'
    autoMitigate: true
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'dead-letters'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'DeadletteredMessages'
          timeAggregation: 'Maximum'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: [
            {
              name: 'EntityName'
              operator: 'Include'
              values: ['*']
            }
          ]
        }
      ]
    }
    actions: [
      {
        actionGroupId: actionGroup.id
      }
    ]
  }
}

resource logAlertRules 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [for alert in logAlerts: {
  name: '${alert.name}-${name}'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: alert.title
    description: '${alert.meaning} ${runbook}#${alert.anchor}'
    severity: alert.severity
    enabled: true
    scopes: [workspaceId]
    windowSize: alert.window
    evaluationFrequency: alert.frequency
    autoMitigate: true
    skipQueryValidation: true // the tables come into being with the first telemetry
    criteria: {
      allOf: [
        {
          query: replace(alert.query, '{component}', appInsightsId)
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          failingPeriods: {
            numberOfEvaluationPeriods: 1
            minFailingPeriodsToAlert: 1
          }
        }
      ]
    }
    actions: {
      actionGroups: [actionGroup.id]
    }
  }
}]
