"""Implements configure-alerting: writes the row and its event in one transaction."""

import json
import os
from datetime import datetime, timezone
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID, uuid5

import boto3
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent,
)
from aws_lambda_powertools.utilities.parser import BaseModel, parse
from aws_lambda_powertools.utilities.typing import LambdaContext
from boto3.dynamodb.types import TypeSerializer
from botocore.config import Config
from pydantic import ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel

FIELDSTATION = UUID("6f1e1d57-a710-4e00-9a5e-0f1e1d57a710")

Id = Annotated[UUID, PlainSerializer(str)]
Metric = Literal[
    "air_temperature",
    "relative_humidity",
    "air_pressure",
    "wind_speed",
    "wind_from_direction",
    "precipitation_amount",
    "surface_downwelling_shortwave_flux_in_air",
    "surface_upwelling_shortwave_flux_in_air",
    "surface_direct_along_beam_shortwave_flux_in_air",
    "surface_diffuse_downwelling_shortwave_flux_in_air",
    "surface_downwelling_longwave_flux_in_air",
    "surface_upwelling_longwave_flux_in_air",
    "surface_downwelling_uvb_flux_in_air",
    "surface_downwelling_photosynthetic_radiative_flux_in_air",
    "ambient_gamma_dose_equivalent_rate",
    "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air",
    "mass_concentration_of_pm10_ambient_aerosol_particles_in_air",
    "mass_concentration_of_ozone_in_air",
    "mass_concentration_of_nitrogen_dioxide_in_air",
    "mole_fraction_of_carbon_dioxide_in_air",
    "water_surface_height_above_reference_datum",
    "water_temperature",
    "water_volume_transport_in_river_channel",
    "water_ph",
    "water_electrical_conductivity",
    "mass_concentration_of_oxygen_in_water",
    "water_turbidity",
]


class Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class Sensor(Wire):
    sensor_id: Id
    metric: Metric
    unit: str
    min: Decimal | None = None
    max: Decimal | None = None


class Command(Wire):
    onboarding_id: Id
    site_id: Id
    causation_id: Id | None = None
    sensors: list[Sensor]


class Superseded(Exception):
    pass


class Transient(Exception):
    pass


logger = Logger()
metrics = Metrics()
dynamodb = boto3.client(
    "dynamodb",
    config=Config(
        connect_timeout=1,
        read_timeout=3,
        retries={"mode": "standard", "total_max_attempts": 3},
        tcp_keepalive=True,
    ),
)
idempotency = DynamoDBPersistenceLayer(os.environ["IDEMPOTENCY_TABLE"], boto3_client=dynamodb)
once = IdempotencyConfig(event_key_jmespath="onboardingId", raise_on_no_idempotency_key=True)
serializer = TypeSerializer()


def put(table: str, item: dict, condition: str, **options: str) -> dict:
    item = serializer.serialize(item)["M"]
    return {"Put": {"TableName": os.environ[table], "Item": item, "ConditionExpression": condition, **options}}


def configure(command: Command) -> dict:
    alerting_id = uuid5(command.onboarding_id, "alerting")
    key = f"alerting#{alerting_id}"
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    rules = [
        {**sensor.model_dump(by_alias=True, exclude_none=True), "state": "NORMAL"}
        for sensor in command.sensors
        if sensor.min is not None or sensor.max is not None
    ]
    row = {
        "id": key,
        **command.model_dump(by_alias=True, exclude_none=True, exclude={"sensors"}),
        "status": "CONFIGURED",
        "rules": rules,
        "sequence": 1,
        "at": now,
    }
    metadata = {
        "eventId": str(uuid5(FIELDSTATION, f"event/{key}/1")),
        "type": "AlertingConfigured",
        "version": 1,
        "occurredAt": now,
        "entity": {"type": "alerting", "id": str(alerting_id)},
        "sequence": 1,
        "correlationId": str(command.onboarding_id),
    }
    if command.causation_id:
        metadata["causationId"] = str(command.causation_id)
    data = {"siteId": str(command.site_id), "rules": len(rules)}
    event = {
        "entity": key,
        "sequence": 1,
        "type": "AlertingConfigured",
        "source": "fieldstation.alerting",
        "occurredAt": now,
        "correlationId": str(command.onboarding_id),
        "detail": json.dumps({"metadata": metadata, "data": data}, separators=(",", ":")),
        "unpublished": str(alerting_id.bytes[0] % 8),
    }
    try:
        dynamodb.transact_write_items(
            TransactItems=[
                put(
                    "ALERTING_TABLE",
                    row,
                    "attribute_not_exists(id)",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                ),
                put("EVENTS_TABLE", event, "attribute_not_exists(entity)"),
            ]
        )
    except dynamodb.exceptions.TransactionCanceledException as error:
        reason = error.response["CancellationReasons"][0]
        if reason["Code"] != "ConditionalCheckFailed":
            raise Transient(str(error)) from error
        if reason["Item"]["status"]["S"] != "CONFIGURED":
            raise Superseded(f"alerting {alerting_id} is already removed") from error
    return {"alertingId": str(alerting_id)}


@logger.inject_lambda_context(correlation_id_path="onboardingId")
@metrics.log_metrics(capture_cold_start_metric=True)
@idempotent(persistence_store=idempotency, config=once)
def handler(event: dict, context: LambdaContext) -> dict:
    reply = configure(parse(event=event, model=Command))
    metrics.add_metric(name="AlertingConfigured", unit=MetricUnit.Count, value=1)
    logger.info("done")
    return reply
