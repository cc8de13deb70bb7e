"""HTTP: what can the app reach with its own identity, and which command mends what it cannot?"""

import json

import azure.functions as func

from shared import bootstrap

blueprint = func.Blueprint()


@blueprint.function_name("check")
@blueprint.route(route="check", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def check(req: func.HttpRequest) -> func.HttpResponse:
    report = bootstrap.check()
    status = 200 if "checks" in report else 503
    return func.HttpResponse(json.dumps(report), status_code=status, mimetype="application/json")
