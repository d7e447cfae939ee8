"""The routes: one line for each."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route, Router

from shell.gateway.admin import (
    REASONS,
    Drain,
    IsSleeping,
    LoadModel,
    ResetPrefixCache,
    Sleep,
    UnloadModel,
    Unsupported,
    WakeUp,
)
from shell.gateway.chat import ChatCompletions
from shell.gateway.completions import Completions
from shell.gateway.cors import Cors
from shell.gateway.embeddings import Embeddings
from shell.gateway.front import Front
from shell.gateway.health import Health, MetricsPage, Readiness, Version
from shell.gateway.infill import Infill
from shell.gateway.load import Load, Props
from shell.gateway.models import ModelDescription, ModelListing
from shell.gateway.openapi import OpenApi
from shell.gateway.page import PageFile, PageStream, ProcessAction, ProcessLife
from shell.gateway.requests import AbortRequest, RequestCancel, RequestDescription, RequestListing
from shell.gateway.rerank import Rerank
from shell.gateway.responses import (
    ResponseCancel,
    ResponseDeletion,
    ResponseDescription,
    ResponseInputItems,
    Responses,
)
from shell.gateway.score import Score
from shell.gateway.service import Service
from shell.gateway.slots import SlotAction, Slots
from shell.gateway.tokenize import ApplyTemplate, Detokenize, Tokenize, TokenizerInfo


def make_app(service: Service) -> Front | Cors:
    """Return the ASGI application."""
    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
        Route("/v1/completions", Completions(service), methods=["POST"]),
        Route("/v1/embeddings", Embeddings(service), methods=["POST"]),
        *(Route(path, Rerank(service), methods=["POST"]) for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
        *(Route(path, Score(service), methods=["POST"]) for path in ("/v1/score", "/score")),
        Route("/infill", Infill(service), methods=["POST"]),
        Route("/v1/models", ModelListing(service), methods=["GET"]),
        Route("/v1/models/{model:path}", ModelDescription(service), methods=["GET"]),
        Route("/health", Health(service), methods=["GET"]),
        Route("/ping", Health(service), methods=["GET"]),
        Route("/health/ready", Readiness(service), methods=["GET"]),
        Route("/version", Version(service), methods=["GET"]),
        Route("/metrics", MetricsPage(service), methods=["GET"]),
        Route("/v1/responses", Responses(service), methods=["POST"]),
        Route("/v1/responses/{id}", ResponseDescription(service), methods=["GET"]),
        Route("/v1/responses/{id}", ResponseDeletion(service), methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", ResponseCancel(service), methods=["POST"]),
        Route("/v1/responses/{id}/input_items", ResponseInputItems(service), methods=["GET"]),
        Route("/tokenize", Tokenize(service), methods=["POST"]),
        Route("/detokenize", Detokenize(service), methods=["POST"]),
        Route("/apply-template", ApplyTemplate(service), methods=["POST"]),
        Route("/tokenizer_info", TokenizerInfo(service), methods=["GET"]),
        Route("/load", Load(service), methods=["GET"]),
        Route("/props", Props(service), methods=["GET"]),
        Route("/slots", Slots(service), methods=["GET"]),
        Route("/slots/{id}", SlotAction(service), methods=["POST"]),
        Route("/v1/requests", RequestListing(service), methods=["GET"]),
        Route("/v1/requests/{id}/cancel", RequestCancel(service), methods=["POST"]),
        Route("/v1/requests/{id}", RequestDescription(service), methods=["GET"]),
        Route("/v1/requests/{id}", RequestCancel(service), methods=["DELETE"]),
        Route("/abort_request", AbortRequest(service), methods=["POST"]),
        Route("/ui", PageFile(service), methods=["GET"]),
        Route("/ui/stream", PageStream(service), methods=["GET"]),
        Route("/ui/process/{pid}", ProcessLife(service), methods=["GET"]),
        Route("/ui/process/{pid}/{action}", ProcessAction(service), methods=["POST"]),
        Route("/ui/{file}", PageFile(service), methods=["GET"]),
        Route("/drain", Drain(service), methods=["POST"]),
        Route("/reset_prefix_cache", ResetPrefixCache(service), methods=["POST"]),
        Route("/sleep", Sleep(service), methods=["POST"]),
        Route("/wake_up", WakeUp(service), methods=["POST"]),
        Route("/models/load", LoadModel(service), methods=["POST"]),
        Route("/models/unload", UnloadModel(service), methods=["POST"]),
        Route("/is_sleeping", IsSleeping(service), methods=["GET"]),
        *(Route(path, Unsupported(service), methods=["POST"]) for path in REASONS),
        Route("/lora-adapters", Unsupported(service), methods=["GET"]),
    ]
    routes.append(Route("/openapi.json", OpenApi(service, routes), methods=["GET"]))
    front = Front(service, Router(routes, redirect_slashes=False))
    return Cors(front, service.config.cors_origins) if service.config.cors_origins else front
