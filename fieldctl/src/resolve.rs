//! Finds the site, the sensor or the operator that an argument means. A site or an operator is given by its id, the first
//! digits of its id, or its name. A sensor is given by its id, the first digits of its id, or `<site>/<metric>`.

use std::collections::HashSet;

use contracts::{OnboardingId, OperatorId, SensorId, SiteId, inbound::MAX_SENSORS, names};
use serde_json::Value;

use crate::{
    error::{CliError, Exit},
    event_log::Period,
    stack::Stack,
};

/// The minimum number of characters in the prefix of an id.
pub const MIN_PREFIX: usize = 4;

/// The maximum number of candidates that an error lists if a name is ambiguous.
const MAX_LISTED: usize = 5;

/// A site and the onboarding that created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteOnboarding {
    /// The site.
    pub site: SiteId,
    /// The site's onboarding: the `correlationId` of all its events.
    pub onboarding: OnboardingId,
}

impl SiteOnboarding {
    fn from_site(site: SiteId) -> Self {
        Self { site, onboarding: OnboardingId::from_site(site) }
    }
}

/// Finds a site by its id, its onboarding's id, the first digits of one of them, or its name.
///
/// A whole id that is not an onboarding's is assumed to be a site's, without a check that the site exists. Any other
/// text is compared with every site: first with whole names, then with ids, then with the beginnings of names.
///
/// # Errors
/// Exit code 3 if no site has that name. Exit code 2 if more than one has it; the error lists their ids.
pub async fn site_onboarding(stack: &Stack, text: &str) -> Result<SiteOnboarding, CliError> {
    let Ok(site) = text.trim().parse::<SiteId>() else {
        let sites = all_sites(stack).await?;
        let id = only_match(&SITE, text, sites.iter().map(Candidate::site))?;
        return id_from_api(&SITE, &id).map(SiteOnboarding::from_site);
    };
    let onboarding: OnboardingId = text.trim().parse().map_err(|_| unknown(&SITE, text))?;
    let events = stack.events_of_onboarding(onboarding, Period::default(), usize::MAX).await?;
    let site_in_events = events
        .iter()
        .filter_map(|event| event.envelope().ok())
        .find_map(|envelope| envelope.data["siteId"].as_str()?.parse().ok());
    if let Some(site) = site_in_events {
        return Ok(SiteOnboarding { site, onboarding });
    }
    // An onboarding whose events can't be found may still have its execution.
    let arn = stack.execution_arn(names::SITE_ONBOARDING, &onboarding.to_string());
    let execution = stack.execution(&arn).await?;
    let site_in_input = execution.and_then(|it| it.input["siteId"].as_str()?.parse().ok());
    Ok(site_in_input
        .map_or(SiteOnboarding::from_site(site), |site| SiteOnboarding { site, onboarding }))
}

/// Finds a site as [`site_onboarding`] does.
///
/// # Errors
/// The same as those of [`site_onboarding`].
pub async fn site(stack: &Stack, text: &str) -> Result<SiteId, CliError> {
    site_onboarding(stack, text).await.map(|found| found.site)
}

/// Finds an operator by its id, the first digits of it, or its name. A whole id is returned without a check.
///
/// # Errors
/// Exit code 3 if no operator has that name. Exit code 2 if more than one has it; the error lists their ids.
pub async fn operator(stack: &Stack, text: &str) -> Result<OperatorId, CliError> {
    if let Ok(id) = text.trim().parse() {
        return Ok(id);
    }
    let operators = stack.all("/operators", "operators").await?;
    let id = only_match(&OPERATOR, text, operators.iter().map(Candidate::operator))?;
    id_from_api(&OPERATOR, &id)
}

/// Finds a sensor by its id, the first digits of its id, or `<site>/<metric>`.
///
/// A whole id is returned without a check. The first digits are compared with the ids of all possible sensors of all
/// sites: ids of sensors are derived from the onboarding's id, so this needs no call for each site.
///
/// # Errors
/// Exit code 3 if no sensor has that name. Exit code 2 if more than one has it.
pub async fn sensor(stack: &Stack, text: &str) -> Result<SensorId, CliError> {
    match text.trim().parse() {
        Ok(id) => Ok(id),
        Err(_) => site_sensor(stack, text).await.map(|(_, sensor)| sensor),
    }
}

/// Finds a sensor and its site. The text is one that [`sensor`] accepts. Unlike [`sensor`], this function also looks up
/// a whole id among the possible sensors of all sites.
///
/// # Errors
/// The same as those of [`sensor`], and exit code 3 for a whole id that no sensor of any site can have.
pub async fn site_sensor(stack: &Stack, text: &str) -> Result<(SiteId, SensorId), CliError> {
    let text = text.trim();
    if let Some((site_name, metric)) = text.rsplit_once('/') {
        let site_id = site(stack, site_name).await?;
        let site = stack.site(site_id).await?;
        return Ok((site_id, only_sensor_of_metric(&site, metric)?));
    }
    let prefix = text.to_lowercase();
    let unknown = || {
        CliError::not_found(format!("no sensor has the id {text:?}"))
            .advise("use its id, the first digits of it, or <site>/<metric>; `fieldctl sensors list <site>` lists the sensors")
    };
    if !is_prefix(&prefix) {
        return Err(unknown());
    }
    let sites = all_sites(stack).await?;
    let sites = sites.iter().filter_map(|site| site["siteId"].as_str()?.parse::<SiteId>().ok());
    let sensors = sites.flat_map(|site| {
        let onboarding = OnboardingId::from_site(site);
        (0..MAX_SENSORS).map(move |index| (site, SensorId::from_onboarding(onboarding, index)))
    });
    let found = sensors.filter(|(_, id)| id.to_string().starts_with(&prefix));
    match found.take(2).collect::<Vec<_>>().as_slice() {
        [] => Err(unknown()),
        [only] => Ok(*only),
        _ => Err(CliError::usage(format!("more than one sensor id begins with {text}"))
            .advise("use more digits, or <site>/<metric>")),
    }
}

/// Returns the id of the site's only sensor of that metric.
fn only_sensor_of_metric(site: &Value, metric: &str) -> Result<SensorId, CliError> {
    let sensors: Vec<_> = site["sensors"].as_array().into_iter().flatten().collect();
    let found: Vec<_> = sensors
        .iter()
        .filter(|sensor| sensor["metric"].as_str() == Some(metric))
        .filter_map(|sensor| sensor["sensorId"].as_str())
        .collect();
    let with_sensors = |error: CliError| {
        let text = |sensor: &Value, name: &str| sensor[name].as_str().unwrap_or("?").to_owned();
        let details =
            sensors.iter().map(|it| format!("{} {}", text(it, "sensorId"), text(it, "metric")));
        CliError { details: details.collect(), ..error }
    };
    match found.as_slice() {
        [] => Err(with_sensors(CliError::not_found(format!(
            "the site has no sensor with the metric {metric:?}"
        )))),
        [id] => id.parse().map_err(|_| {
            CliError::new(Exit::Failed, format!("the API returned an invalid sensor id: {id:?}"))
        }),
        _ => Err(with_sensors(CliError::usage(format!(
            "the site has more than one sensor with the metric {metric:?}"
        )))),
    }
}

fn is_prefix(text: &str) -> bool {
    text.len() >= MIN_PREFIX && text.bytes().all(|it| it.is_ascii_hexdigit() || it == b'-')
}

fn unknown(kind: &Kind, text: &str) -> CliError {
    CliError::not_found(format!("no {} has the id or the name {text:?}", kind.name))
        .advise(format!("`fieldctl {}s list` lists the {}s", kind.name, kind.name))
}

/// Returns every site, as `GET /sites` lists it.
async fn all_sites(stack: &Stack) -> Result<Vec<Value>, CliError> {
    Ok(latest(stack.all("/sites", "sites").await?))
}

/// Returns the last entry of each site. `GET /sites` lists one status after the other. So a site whose status changes
/// while the pages are read may be listed twice.
fn latest(mut sites: Vec<Value>) -> Vec<Value> {
    let mut seen = HashSet::new();
    sites.reverse();
    sites.retain(|site| seen.insert(text(site, "siteId")));
    sites.reverse();
    sites
}

/// The kind of thing that an argument names. The command `fieldctl <name>s list` lists all of this kind.
struct Kind {
    name: &'static str,
}

const SITE: Kind = Kind { name: "site" };
const OPERATOR: Kind = Kind { name: "operator" };

/// The fields of a site or an operator with which an argument is compared.
#[derive(Clone, Debug)]
struct Candidate {
    id: String,
    /// The id of the site's onboarding, which also names the site.
    onboarding: Option<String>,
    name: String,
}

impl Candidate {
    fn site(site: &Value) -> Self {
        let id = text(site, "siteId");
        let onboarding = id.parse().map(|id| OnboardingId::from_site(id).to_string()).ok();
        Self { id, onboarding, name: text(site, "name") }
    }

    fn operator(operator: &Value) -> Self {
        Self { id: text(operator, "operatorId"), onboarding: None, name: text(operator, "name") }
    }

    fn has_id_with_prefix(&self, prefix: &str) -> bool {
        self.id.starts_with(prefix)
            || self.onboarding.as_ref().is_some_and(|id| id.starts_with(prefix))
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn id_from_api<T: std::str::FromStr>(kind: &Kind, id: &str) -> Result<T, CliError> {
    id.parse().map_err(|_| {
        CliError::new(Exit::Failed, format!("the API returned an invalid {} id: {id:?}", kind.name))
    })
}

/// Returns the id of the only candidate that the text names.
fn only_match(
    kind: &Kind,
    text: &str,
    candidates: impl Iterator<Item = Candidate>,
) -> Result<String, CliError> {
    let text = text.trim();
    let lower = text.to_lowercase();
    let is_prefix = is_prefix(&lower);
    let (mut by_name, mut by_id, mut by_prefix) = (Vec::new(), Vec::new(), Vec::new());
    for candidate in candidates {
        let name = candidate.name.to_lowercase();
        if name == lower {
            by_name.push(candidate);
        } else if is_prefix && candidate.has_id_with_prefix(&lower) {
            by_id.push(candidate);
        } else if !lower.is_empty() && name.starts_with(&lower) {
            by_prefix.push(candidate);
        }
    }
    let found =
        [by_name, by_id, by_prefix].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match found.as_slice() {
        [] => Err(unknown(kind, text)),
        [only] => Ok(only.id.clone()),
        several => {
            let listed = several.iter().take(MAX_LISTED).map(|it| format!("{} {}", it.id, it.name));
            let message = format!("{} {}s match {text:?}", several.len(), kind.name);
            Err(CliError { details: listed.collect(), ..CliError::usage(message) }
                .advise("use the id, or more digits of it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITES: [(&str, &str); 3] = [
        ("0195d9a5-7c00-7000-8000-000000000001", "Desert Rock"),
        ("0195d9a5-7c00-7000-8000-000000000002", "Desert Rock 2"),
        ("fade0000-7c00-7000-8000-000000000003", "Deadwood"),
    ];

    #[test]
    fn a_site_whose_status_changed_while_it_was_listed_counts_once() {
        let site = |id: &str, status: &str| serde_json::json!({"siteId": id, "status": status});
        let listed = vec![site("a", "ONBOARDING"), site("b", "ACTIVE"), site("a", "ACTIVE")];
        assert_eq!(latest(listed), [site("b", "ACTIVE"), site("a", "ACTIVE")]);
    }

    fn named(text: &str) -> Result<String, (Exit, Vec<String>)> {
        let sites = SITES
            .iter()
            .map(|(id, name)| Candidate::site(&serde_json::json!({"siteId": id, "name": name})));
        only_match(&SITE, text, sites).map_err(|error| (error.exit, error.details))
    }

    #[test]
    fn an_exact_name_has_priority_over_a_longer_name() {
        assert_eq!(named("desert rock").unwrap(), SITES[0].0);
        assert_eq!(named("Desert Rock 2").unwrap(), SITES[1].0);
        assert_eq!(
            named("dead").unwrap(),
            SITES[2].0,
            "the beginning of a name that could be digits"
        );
    }

    #[test]
    fn an_id_is_found_by_its_first_digits_and_by_its_onboarding() {
        assert_eq!(named("FADE").unwrap(), SITES[2].0);
        let onboarding = OnboardingId::from_site(SITES[2].0.parse().unwrap()).to_string();
        assert_eq!(named(&onboarding[..8]).unwrap(), SITES[2].0);
    }

    #[test]
    fn an_ambiguous_text_is_refused_with_both_sites() {
        let (exit, details) = named("0195d9a5").unwrap_err();
        assert_eq!(exit, Exit::Usage);
        assert_eq!(details.len(), 2, "{details:?}");
        assert_eq!(named("desert").unwrap_err().0, Exit::Usage);
    }

    #[test]
    fn a_sensor_is_found_by_its_metric_if_it_is_the_only_one() {
        let id = SensorId::from_onboarding(OnboardingId::from_site(SITES[0].0.parse().unwrap()), 0)
            .to_string();
        let sensor = |metric: &str| serde_json::json!({"sensorId": id, "metric": metric});
        let site = serde_json::json!({"sensors": [sensor("wind_speed"), sensor("humidity"), sensor("humidity")]});
        assert_eq!(only_sensor_of_metric(&site, "wind_speed").unwrap().to_string(), id);
        for (metric, exit) in [("humidity", Exit::Usage), ("pm10", Exit::NotFound)] {
            let error = only_sensor_of_metric(&site, metric).unwrap_err();
            assert_eq!((error.exit, error.details.len()), (exit, 3), "{metric}");
        }
    }

    #[test]
    fn an_unknown_name_is_not_found() {
        for unknown in ["nowhere", "", "123", "fff"] {
            assert_eq!(named(unknown).unwrap_err().0, Exit::NotFound, "{unknown:?}");
        }
    }
}
