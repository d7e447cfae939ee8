"""Who is agreed what, from the configuration, the environment and the tenants file."""

from __future__ import annotations

import os
from pathlib import Path

from llmos.config import Config, ConfigError, listens_beyond_loopback, parse_weights
from llmos.kernel.server import SyscallServer
from llmos.kernel.spent import BudgetsUnreadable, Spent, default_budget_file
from llmos.kernel.system import System
from llmos.kernel.tenant_reload import BadAgreement, TenantReload
from llmos.kernel.tenants import Agreement, Tenants, Terms
from llmos.params import KEYS_VARIABLE
from llmos.sched.accounts import Accounts
from llmos.tenants_file import add_keys, read_tenants


def make_tenants(config: Config) -> Tenants:
    """Who is agreed what at the start. Raises ConfigError."""
    agreement = read_agreement(config)
    budget_file = Path(config.budget_file).expanduser() if config.budget_file else default_budget_file()
    spent = Spent(budget_file)
    tenants = Tenants(Accounts(agreement.weights), agreement.terms, agreement.default, spent)
    if (
        config.listen
        and listens_beyond_loopback(config.listen)
        and not (tenants.needs_key or config.insecure_no_keys)
    ):
        raise ConfigError(
            f"listen is {config.listen!r}, which other machines reach, and no tenant has a key: give keys in "
            "tenants (see `llmos key`) or in LLMOS_KEYS, listen on 127.0.0.1, or set insecure_no_keys"
        )
    return tenants


def open_budgets(tenants: Tenants) -> None:
    """Read what is spent of budgets, and keep others from the file. Blocks. Raises ConfigError."""
    try:
        tenants.spent.open()
    except BudgetsUnreadable as error:
        raise ConfigError(str(error)) from error


def read_agreement(config: Config) -> Agreement:
    """Who is agreed what, by file, environment and weights. Blocks. Raises ConfigError."""
    file = add_keys(os.environ.get(KEYS_VARIABLE, ""), read_tenants(config.tenants))
    weights = parse_weights(config.tenant_weights)
    if twice := sorted(weights.keys() & file.tenant.keys()):
        raise ConfigError(f"the weight of {twice[0]} is in tenant_weights and in {config.tenants}")
    weights |= {name: entry.weight for name, entry in file.tenant.items()}
    terms = {
        name: Terms(
            limits=entry.limits(file.default),
            keys_sha256=entry.keys_sha256,
            uids=entry.uids,
            is_admin=entry.admin,
        )
        for name, entry in file.tenant.items()
    }
    return Agreement(terms=terms, default=file.default.limits(file.default), weights=weights)


def make_tenant_reload(
    config: Config, system: System, server: SyscallServer, socket_path: str
) -> TenantReload:
    """What reads the tenants file again."""

    def read() -> Agreement:
        try:
            return read_agreement(config)
        except ConfigError as error:
            raise BadAgreement(str(error)) from error

    return TenantReload(
        system, server, read, lambda system: Path(socket_path).chmod(socket_mode(system.tenants))
    )


def socket_mode(tenants: Tenants) -> int:
    """Other users of the machine may open the socket if some are named; the kernel turns away the others."""
    return 0o666 if tenants.names_users else 0o600
