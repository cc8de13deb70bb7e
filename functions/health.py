"""HTTP: is the app set up, and may it act?"""

import json

import azure.functions as func

from shared import bootstrap

blueprint = func.Blueprint()


@blueprint.function_name("health")
@blueprint.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def health(req: func.HttpRequest) -> func.HttpResponse:
    report = bootstrap.health()
    body = json.dumps(report)
    return func.HttpResponse(body, status_code=200 if report["ok"] else 503, mimetype="application/json")
