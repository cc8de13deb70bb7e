"""The function app that Azure Functions loads: every function is a blueprint in `functions/`."""

import azure.functions as func

from functions import audit, check, decide_action, find_failures, follow_up, health, retry_run, send_email
from shared import bootstrap

bootstrap.report_at_start()

app = func.FunctionApp()
for module in (find_failures, decide_action, retry_run, send_email, follow_up, audit, check, health):
    app.register_functions(module.blueprint)
