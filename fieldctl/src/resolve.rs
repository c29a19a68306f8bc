//! Finds the site or the sensor that an argument means. A site is given by its id, the first digits of its id, or its
//! name. A sensor is given by its id, the first digits of its id, or `<site>/<metric>`.

use contracts::{OnboardingId, SensorId, SiteId, inbound::MAX_SENSORS, names};
use serde_json::Value;

use crate::{
    api::{Call, query},
    error::{CliError, Exit},
    event_log::Period,
    stack::Stack,
};

/// The minimum number of characters in the prefix of an id.
pub const MIN_PREFIX: usize = 4;

/// The maximum number of sites that an error lists if a name is ambiguous.
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
        return only_match(text, sites.iter().map(Site::from_api)).map(SiteOnboarding::from_site);
    };
    let onboarding: OnboardingId = text.trim().parse().map_err(|_| no_site(text))?;
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

/// Finds a sensor by its id, the first digits of its id, or `<site>/<metric>`.
///
/// A whole id is returned without a check. The first digits are compared with the ids of all possible sensors of all
/// sites: ids of sensors are derived from the onboarding's id, so this needs no call for each site.
///
/// # Errors
/// Exit code 3 if no sensor has that name. Exit code 2 if more than one has it.
pub async fn sensor(stack: &Stack, text: &str) -> Result<SensorId, CliError> {
    let text = text.trim();
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    if let Some((site_name, metric)) = text.rsplit_once('/') {
        let site = site(stack, site_name).await?;
        let site = stack.call(Call::get(format!("/sites/{site}"))).await?;
        return only_sensor_of_metric(&site, metric);
    }
    let prefix = text.to_lowercase();
    let unknown = || {
        CliError::not_found(format!("no sensor has the id {text:?}"))
            .advise("use its id, the first digits of it, or <site>/<metric>; `fieldctl sites show <site>` lists the sensors")
    };
    if !is_prefix(&prefix) {
        return Err(unknown());
    }
    let sites = all_sites(stack).await?;
    let onboardings = sites
        .iter()
        .filter_map(|site| Some(OnboardingId::from_site(site["siteId"].as_str()?.parse().ok()?)));
    let ids = onboardings
        .flat_map(|id| (0..MAX_SENSORS).map(move |index| SensorId::from_onboarding(id, index)));
    let found: Vec<_> = ids.filter(|id| id.to_string().starts_with(&prefix)).take(2).collect();
    match found.as_slice() {
        [] => Err(unknown()),
        [id] => Ok(*id),
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

fn no_site(text: &str) -> CliError {
    CliError::not_found(format!("no site has the id or the name {text:?}"))
        .advise("`fieldctl sites list` lists the sites")
}

/// Returns every site, as `GET /sites` lists it.
async fn all_sites(stack: &Stack) -> Result<Vec<Value>, CliError> {
    let (mut sites, mut next) = (Vec::new(), None);
    loop {
        let query = query(&[("limit", Some("100".to_owned())), ("next", next)]);
        let page = stack.call(Call::get(format!("/sites?{query}"))).await?;
        sites.extend(page["sites"].as_array().into_iter().flatten().cloned());
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() {
            return Ok(sites);
        }
    }
}

/// The fields of a site with which a text is compared.
#[derive(Clone, Debug)]
struct Site {
    id: String,
    onboarding: String,
    name: String,
}

impl Site {
    fn from_api(site: &Value) -> Self {
        let id = site["siteId"].as_str().unwrap_or_default().to_owned();
        let onboarding =
            id.parse().map(|id| OnboardingId::from_site(id).to_string()).unwrap_or_default();
        Self { id, onboarding, name: site["name"].as_str().unwrap_or_default().to_owned() }
    }
}

/// Returns the only site that the text names.
fn only_match(text: &str, sites: impl Iterator<Item = Site>) -> Result<SiteId, CliError> {
    let text = text.trim();
    let lower = text.to_lowercase();
    let is_prefix = is_prefix(&lower);
    let (mut by_name, mut by_id, mut by_prefix) = (Vec::new(), Vec::new(), Vec::new());
    for site in sites {
        let name = site.name.to_lowercase();
        if name == lower {
            by_name.push(site);
        } else if is_prefix && (site.id.starts_with(&lower) || site.onboarding.starts_with(&lower))
        {
            by_id.push(site);
        } else if !lower.is_empty() && name.starts_with(&lower) {
            by_prefix.push(site);
        }
    }
    let found =
        [by_name, by_id, by_prefix].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match found.as_slice() {
        [] => Err(no_site(text)),
        [site] => site.id.parse().map_err(|_| {
            CliError::new(
                Exit::Failed,
                format!("the API returned an invalid site id: {:?}", site.id),
            )
        }),
        several => {
            let listed =
                several.iter().take(MAX_LISTED).map(|site| format!("{} {}", site.id, site.name));
            let error = CliError::usage(format!("{} sites match {text:?}", several.len()));
            Err(CliError { details: listed.collect(), ..error }
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

    fn named(text: &str) -> Result<String, (Exit, Vec<String>)> {
        let sites = SITES
            .iter()
            .map(|(id, name)| Site::from_api(&serde_json::json!({"siteId": id, "name": name})));
        only_match(text, sites)
            .map(|id| id.to_string())
            .map_err(|error| (error.exit, error.details))
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
