// configure-alerting: the row and its event in one transaction.

import { IdempotencyConfig, makeIdempotent } from "@aws-lambda-powertools/idempotency";
import { DynamoDBPersistenceLayer } from "@aws-lambda-powertools/idempotency/dynamodb";
import { Logger } from "@aws-lambda-powertools/logger";
import { Metrics, MetricUnit } from "@aws-lambda-powertools/metrics";
import { parse } from "@aws-lambda-powertools/parser";
import { DynamoDBClient, TransactionCanceledException } from "@aws-sdk/client-dynamodb";
import { DynamoDBDocumentClient, TransactWriteCommand } from "@aws-sdk/lib-dynamodb";
import type { Context } from "aws-lambda";
import { parse as bytes, v5 } from "uuid";
import { z } from "zod";

const FIELDSTATION = "6f1e1d57-a710-4e00-9a5e-0f1e1d57a710";

const Sensor = z.object({
  sensorId: z.uuid(),
  metric: z.enum([
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
  ]),
  unit: z.string(),
  min: z.number().optional(),
  max: z.number().optional(),
});

const Command = z.object({
  onboardingId: z.uuid(),
  siteId: z.uuid(),
  causationId: z.uuid().optional(),
  sensors: z.array(Sensor),
});

class Superseded extends Error {
  override name = "Superseded";
}

class Transient extends Error {
  override name = "Transient";
}

function env(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`environment variable ${name} is missing`);
  return value;
}

const logger = new Logger();
const metrics = new Metrics();
const client = new DynamoDBClient({
  maxAttempts: 3,
  requestHandler: { connectionTimeout: 1000, requestTimeout: 3000 },
});
const dynamodb = DynamoDBDocumentClient.from(client, { marshallOptions: { removeUndefinedValues: true } });
const alertingTable = env("ALERTING_TABLE");
const eventsTable = env("EVENTS_TABLE");
const persistenceStore = new DynamoDBPersistenceLayer({ tableName: env("IDEMPOTENCY_TABLE"), awsSdkV3Client: client });
const config = new IdempotencyConfig({ eventKeyJmesPath: "onboardingId", throwOnNoIdempotencyKey: true });

async function configure({ onboardingId, siteId, causationId, sensors }: z.infer<typeof Command>) {
  const alertingId = v5("alerting", onboardingId);
  const key = `alerting#${alertingId}`;
  const now = new Date().toISOString();
  const rules = sensors
    .filter(({ min, max }) => min !== undefined || max !== undefined)
    .map((sensor) => ({ ...sensor, state: "NORMAL" }));
  const row = { id: key, onboardingId, siteId, causationId, status: "CONFIGURED", rules, sequence: 1, at: now };
  const metadata = {
    eventId: v5(`event/${key}/1`, FIELDSTATION),
    type: "AlertingConfigured",
    version: 1,
    occurredAt: now,
    entity: { type: "alerting", id: alertingId },
    sequence: 1,
    correlationId: onboardingId,
    causationId,
  };
  const event = {
    entity: key,
    sequence: 1,
    type: metadata.type,
    source: "fieldstation.alerting",
    occurredAt: now,
    correlationId: onboardingId,
    detail: JSON.stringify({ metadata, data: { siteId, rules: rules.length } }),
    unpublished: String((bytes(alertingId)[0] ?? 0) % 8),
  };
  try {
    await dynamodb.send(
      new TransactWriteCommand({
        TransactItems: [
          {
            Put: {
              TableName: alertingTable,
              Item: row,
              ConditionExpression: "attribute_not_exists(id)",
              ReturnValuesOnConditionCheckFailure: "ALL_OLD",
            },
          },
          { Put: { TableName: eventsTable, Item: event, ConditionExpression: "attribute_not_exists(entity)" } },
        ],
      }),
    );
  } catch (error) {
    if (!(error instanceof TransactionCanceledException)) throw error;
    const reason = error.CancellationReasons?.[0];
    if (reason?.Code !== "ConditionalCheckFailed") throw new Transient(error.message);
    if (reason.Item?.status?.S !== "CONFIGURED") {
      throw new Superseded(`alerting ${alertingId} is already removed`);
    }
  }
  return { alertingId };
}

const step = makeIdempotent(
  async (event: unknown, _context: Context) => {
    const reply = await configure(parse(event, undefined, Command));
    metrics.addMetric("AlertingConfigured", MetricUnit.Count, 1);
    logger.info("done");
    return reply;
  },
  { persistenceStore, config },
);

export const handler = async (event: { onboardingId?: string }, context: Context) => {
  logger.addContext(context);
  if (event.onboardingId) logger.setCorrelationId(event.onboardingId);
  metrics.captureColdStartMetric(context.functionName);
  try {
    return await step(event, context);
  } finally {
    metrics.publishStoredMetrics();
  }
};
