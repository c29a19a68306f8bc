//! Events that other systems put on the bus. Their `detail` has no envelope. Their `source` is the sender's.
//!
//! None of these types implements `Deserialize`. [`crate::input`] reads them, because it reports all problems at once.
//! A field's schema attributes and its [`FieldRule`] describe the same constraint; tests compare the two.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Location, Metric, PaymentMethodId, Plan, UtcOffset,
    events::Kits,
    input::{
        FieldRule, Fields, Input, JsonValue, List, Number, Object, OneOf, Parsed, Problems,
        Purpose, Reason, Text, quoted,
    },
    number,
    sensor::RegisteredMetadata,
    site, text, utc_offset,
};

/// `detail-type` of [`KitsDelivered`].
pub const KITS_DELIVERED: &str = "KitsDelivered";

/// `detail-type` of [`SiteRegistrationRequested`].
pub const SITE_REGISTRATION_REQUESTED: &str = "SiteRegistrationRequested";

/// The maximum length of the id that another system gives to a delivery or a registration, in characters.
pub const MAX_ID: usize = 128;
/// The maximum length of the name of a site or an operator, in characters.
pub const MAX_NAME: usize = 200;
/// The maximum length of a payment method id, in characters.
pub const MAX_PAYMENT_METHOD: usize = 255;
/// The maximum number of sensors of a site. A larger station registers as several sites.
pub const MAX_SENSORS: usize = 100;
/// The maximum number of kinds of kits in a delivery.
pub const MAX_KITS: usize = 50;
/// The maximum number of kits of one kind in a delivery.
pub const MAX_QUANTITY: u32 = 1_000_000;

/// Kits were delivered to the warehouse. A `deliveryId` of a `source` is counted once, even if the event is delivered
/// several times.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KitsDelivered {
    /// The supplier's id of the delivery, unique within its `source`: 1 to 128 characters, without control or invisible
    /// characters, and without leading or trailing white space.
    #[schemars(length(min = 1, max = MAX_ID), extend("pattern" = text::id_pattern()))]
    pub delivery_id: String,
    /// The delivered kits: 1 to 50 entries, each with a different metric.
    #[schemars(length(min = 1, max = MAX_KITS))]
    pub kits: Vec<Kits>,
}

/// Another system requests a new site. A `registrationId` of a `source` creates one site, even if the event is
/// delivered several times.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteRegistrationRequested {
    /// The other system's id of the request, unique within its `source`: 1 to 128 characters, without control or
    /// invisible characters, and without leading or trailing white space.
    #[schemars(length(min = 1, max = MAX_ID), extend("pattern" = text::id_pattern()))]
    pub registration_id: String,
    /// The site to register. It has the same format as the body of `POST /sites`.
    pub site: SiteRegistration,
}

/// A new site. It is the body of `POST /sites`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteRegistration {
    /// The name of the site: 1 to 200 characters, not blank, without control or invisible characters. Leading and
    /// trailing white space is removed.
    #[schemars(length(min = 1, max = MAX_NAME), extend("pattern" = text::name_pattern()))]
    pub name: String,
    /// The name of the site's operator, as free text for people: 1 to 200 characters, not blank, without control or
    /// invisible characters. Leading and trailing white space is removed. It gives no rights: the site belongs to the
    /// operator of the caller's key, or of the event's source.
    #[schemars(length(min = 1, max = MAX_NAME), extend("pattern" = text::name_pattern()))]
    pub operator: String,
    /// The location of the site.
    pub location: Location,
    /// The fixed UTC offset of the site's clock, if its loggers send times without an offset: `Z`, or -12:00 to +14:00. It
    /// can't be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "utc_offset::schema")]
    pub utc_offset: Option<UtcOffset>,
    /// The sensors of the site: 1 to 100.
    #[schemars(length(min = 1, max = MAX_SENSORS))]
    pub sensors: Vec<SensorRequest>,
    /// The plan that the operator subscribes to.
    pub plan: Plan,
    /// The payment provider's id of the payment method: 1 to 255 letters, digits, `_` and `-`.
    #[schemars(schema_with = "site::payment_method")]
    pub payment_method: PaymentMethodId,
}

/// A sensor of a new site.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields, extend("anyOf" = units_by_metric()))]
pub struct SensorRequest {
    /// The metric that the sensor measures.
    pub metric: Metric,
    /// The unit of the readings, as a UCUM code: one of the units of the metric.
    #[schemars(length(min = 1, max = site::MAX_UNIT))]
    pub unit: String,
    /// The lower alert limit, in `unit`. It must be below `max`. A reading below it is a breach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number::any_or_null")]
    pub min: Option<f64>,
    /// The upper alert limit, in `unit`. A reading above it is a breach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number::any_or_null")]
    pub max: Option<f64>,
    /// How its samples are taken and corrected.
    #[serde(flatten)]
    pub metadata: RegisteredMetadata,
}

/// Returns the cases of the schema's `anyOf`. Metrics with the same units share a case, so each metric is in one case.
fn units_by_metric() -> Vec<Value> {
    let mut cases: BTreeMap<&[&str], Vec<&str>> = BTreeMap::new();
    for metric in Metric::ALL {
        cases.entry(metric.units()).or_default().push(metric.name());
    }
    let case = |(units, metrics): (&[&str], Vec<&str>)| json!({ "properties": { "metric": { "enum": metrics }, "unit": { "enum": units } } });
    cases.into_iter().map(case).collect()
}

const METRIC: OneOf<Metric> = OneOf { all: Metric::ALL, name: Metric::name };
const PLAN: OneOf<Plan> = OneOf { all: Plan::ALL, name: Plan::name };
const NAME: Text = Text { purpose: Purpose::Name, max: MAX_NAME };
const ID: Text = Text { purpose: Purpose::Id, max: MAX_ID };
const UTC_OFFSET: Parsed<UtcOffset> =
    Parsed::new("Z, or an offset from -12:00 to +14:00 such as +01:00");

impl Input for KitsDelivered {
    const FIELDS: &'static [&'static str] = &["deliveryId", "kits"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let delivery_id = fields.required("deliveryId", &ID, problems);
        let kits = List { max: MAX_KITS, what: "kinds of kits", item: Object::<Kits>::default() };
        let kits = fields.required("kits", &kits, problems)?;
        let mut seen = BTreeSet::new();
        for (index, kit) in kits.iter().enumerate() {
            if let Some(Kits { metric, .. }) = kit
                && !seen.insert(metric)
            {
                let at = format!("{}[{index}].metric", fields.path("kits"));
                let message = format!("is a duplicate of {metric}; give each metric once");
                problems.add_as(Reason::Duplicate, at, message);
            }
        }
        Some(Self { delivery_id: delivery_id?, kits: kits.into_iter().collect::<Option<_>>()? })
    }
}

impl Input for Kits {
    const FIELDS: &'static [&'static str] = &["metric", "quantity"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let metric = fields.required("metric", &METRIC, problems);
        let quantity = fields.required("quantity", &Kits::QUANTITY, problems);
        Some(Self { metric: metric?, quantity: quantity? })
    }
}

impl Input for SiteRegistrationRequested {
    const FIELDS: &'static [&'static str] = &["registrationId", "site"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let registration_id = fields.required("registrationId", &ID, problems);
        let site = fields.required("site", &Object::default(), problems);
        Some(Self { registration_id: registration_id?, site: site? })
    }
}

impl Input for SiteRegistration {
    const FIELDS: &'static [&'static str] =
        &["name", "operator", "location", "utcOffset", "sensors", "plan", "paymentMethod"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let sensors = List {
            max: MAX_SENSORS,
            what: "sensors (register a larger station as several sites)",
            item: Object::<SensorRequest>::default(),
        };
        let name = fields.required("name", &NAME, problems);
        let operator = fields.required("operator", &NAME, problems);
        let location = fields.required("location", &Object::default(), problems);
        let utc_offset = fields.optional("utcOffset", &UTC_OFFSET, problems);
        let sensors = fields.required("sensors", &sensors, problems);
        let plan = fields.required("plan", &PLAN, problems);
        let payment_method = fields.required("paymentMethod", &PaymentMethod, problems);
        Some(Self {
            name: name?,
            operator: operator?,
            location: location?,
            utc_offset,
            sensors: sensors?.into_iter().collect::<Option<_>>()?,
            plan: plan?,
            payment_method: payment_method?,
        })
    }
}

impl Input for Location {
    const FIELDS: &'static [&'static str] = &["latitude", "longitude", "elevationM"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let latitude = fields.required("latitude", &Self::LATITUDE, problems);
        let longitude = fields.required("longitude", &Self::LONGITUDE, problems);
        let elevation_m = fields.required("elevationM", &Self::ELEVATION_M, problems);
        Some(Self { latitude: latitude?, longitude: longitude?, elevation_m: elevation_m? })
    }
}

impl Input for SensorRequest {
    const FIELDS: &'static [&'static str] = &[
        "metric",
        "unit",
        "min",
        "max",
        "label",
        "kind",
        "stamp",
        "reportEverySeconds",
        "heightM",
        "datum",
        "resolution",
        "detectionLimit",
        "counter",
        "externalIds",
        "intervalSeconds",
        "noDataValues",
        "calibration",
    ];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let metric = fields.required("metric", &METRIC, problems);
        let unit = fields.required("unit", &UnitOf(metric), problems);
        let min = fields.optional("min", &Number::ANY, problems);
        let max = fields.optional("max", &Number::ANY, problems);
        if let (Some(min), Some(max)) = (min, max)
            && min >= max
        {
            let (min, max) = (number::format_number(min), number::format_number(max));
            let message = format!("is {min}; it must be below max, which is {max}");
            problems.add(fields.path("min"), message);
        }
        let metadata = RegisteredMetadata::read(fields, problems);
        Some(Self { metric: metric?, unit: unit?, min, max, metadata })
    }
}

/// The rule of a unit. If the metric is unknown, any string is accepted.
struct UnitOf(Option<Metric>);

impl FieldRule for UnitOf {
    type Value = String;

    fn expected(&self) -> String {
        match self.0 {
            Some(metric) => format!("{} (UCUM), for {metric}", metric.units().join(" or ")),
            None => "the UCUM code of one of the metric's units".to_owned(),
        }
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<String> {
        let unit = tree.string(at, &self.expected(), problems)?;
        if self.0.is_some_and(|metric| !metric.units().contains(&unit)) {
            problems.add(at, format!("is {}; give {}", quoted(unit), self.expected()));
        }
        Some(unit.to_owned())
    }
}

/// The rule of a payment method id. Messages do not quote the value.
struct PaymentMethod;

impl FieldRule for PaymentMethod {
    type Value = PaymentMethodId;

    fn expected(&self) -> String {
        format!("a string of 1 to {MAX_PAYMENT_METHOD} letters, digits, _ and -")
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<PaymentMethodId> {
        let text = tree.string(at, &self.expected(), problems)?;
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !(1..=MAX_PAYMENT_METHOD).contains(&text.len()) || !text.bytes().all(good) {
            let length = text.chars().count();
            let message = format!(
                "is not a payment method id ({length} characters); give {}",
                self.expected()
            );
            problems.add(at, message);
        }
        Some(PaymentMethodId(text.to_owned()))
    }
}

/// Returns every inbound event type with the JSON Schema of its `detail`.
#[must_use]
pub fn schemas() -> Vec<(&'static str, schemars::Schema)> {
    vec![
        (KITS_DELIVERED, schemars::schema_for!(KitsDelivered)),
        (SITE_REGISTRATION_REQUESTED, schemars::schema_for!(SiteRegistrationRequested)),
    ]
}
