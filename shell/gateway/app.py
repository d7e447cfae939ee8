"""The routes: one line for each."""

from __future__ import annotations

from starlette.routing import Route, Router

from shell.gateway.chat import ChatCompletions
from shell.gateway.completions import Completions
from shell.gateway.front import Front
from shell.gateway.health import Health, MetricsPage, Readiness, Version
from shell.gateway.models import ModelDescription, ModelListing
from shell.gateway.service import Service


def make_app(service: Service) -> Front:
    """Return the ASGI application."""
    routes = [
        Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
        Route("/v1/completions", Completions(service), methods=["POST"]),
        Route("/v1/models", ModelListing(service), methods=["GET"]),
        Route("/v1/models/{model:path}", ModelDescription(service), methods=["GET"]),
        Route("/health", Health(service), methods=["GET"]),
        Route("/ping", Health(service), methods=["GET"]),
        Route("/health/ready", Readiness(service), methods=["GET"]),
        Route("/version", Version(service), methods=["GET"]),
        Route("/metrics", MetricsPage(service), methods=["GET"]),
    ]
    return Front(service, Router(routes, redirect_slashes=False))
