"""The gateway's command line, from the configuration."""

from __future__ import annotations

from llmos.config import Config, parse_aliases


def gateway_options(config: Config, socket_path: str) -> list[str]:
    """The gateway's command line, from the configuration."""
    options: dict[str, object] = {
        "listen": config.listen,
        "socket": socket_path,
        "sampling-defaults": config.sampling_defaults,
        "tool-parser": config.tool_parser,
        "reasoning-parser": config.reasoning_parser,
        "reasoning-field": config.reasoning_field,
        "max-responses": config.max_responses,
        "response-ttl": config.response_ttl_seconds,
        "max-body-bytes": config.max_body_mib << 20,
        "max-large-bodies": config.max_large_bodies,
        "max-large-bodies-per-key": config.max_large_bodies_per_key,
        "body-timeout": config.body_timeout_seconds,
        "keep-alive-timeout": config.keep_alive_timeout_seconds,
        "sse-ping-interval": config.sse_ping_interval,
        "send-timeout": config.send_timeout_seconds,
        "shutdown-timeout": config.shutdown_grace_seconds,
        "priority-order": config.priority_order,
        "max-users": config.max_users,
        "model-load-wait": config.model_load_wait_seconds,
        "metrics-compat": config.metrics_compat,
        "log-level": config.log_level,
        "log-format": config.log_format,
    }
    if config.max_uploads_mib is not None:
        options["max-uploads-bytes"] = config.max_uploads_mib << 20
    if config.response_folder is not None:
        options["response-folder"] = config.response_folder
    switches = ["--allow-chat-template"] if config.allow_chat_template else []
    switches += ["--timings"] if config.timings else []
    switches += ["--realtime"] if config.realtime else []
    if config.insecure_no_keys:
        switches.append("--insecure-no-keys")
    if config.tls_cert is not None and config.tls_key is not None:
        options |= {"tls-cert": config.tls_cert, "tls-key": config.tls_key}
    switches += [
        f"--cors-origin={origin.strip()}" for origin in config.cors_origins.split(",") if origin.strip()
    ]
    switches += [f"--alias={alias}" for alias in parse_aliases(config.alias)]
    return [f"--{name}={value}" for name, value in options.items()] + switches
