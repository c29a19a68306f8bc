//! The forms in which the bus gets an event of the log.
//!
//! The log has each event once, in the version that was current when it was written. The bus gets it also in the
//! earlier versions that are still supported, so that consumers change to the new version when they are ready. The
//! stream of all events gets each event only in the version of its row.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AlertingConfigured, v1};
use crate::Event;

/// One form of an event: an entry for the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedForm<'a> {
    /// EventBridge's `detail-type`: the event type, followed by `.v<version>` from version 2 on.
    pub detail_type: Cow<'a, str>,
    /// The `detail`, as JSON text.
    pub detail: Cow<'a, str>,
}

/// Returns the forms of an event in the log, by its type and its `detail`. The newest version comes first, with the
/// `detail` unchanged.
///
/// All forms have the same metadata except `version`, so a consumer of two forms finds the duplicates by the event id.
/// A row in an earlier version has only the form of that version.
///
/// # Errors
/// Fails if the type has several versions, and the `detail` is not an event of this type.
pub fn published_forms<'a>(
    kind: &'a str,
    detail: &'a str,
) -> Result<Vec<PublishedForm<'a>>, serde_json::Error> {
    if kind == AlertingConfigured::TYPE {
        forms::<AlertingConfigured, v1::AlertingConfigured>(kind, detail)
    } else {
        // Version 1, or an event of another system: the detail is not parsed.
        Ok(vec![PublishedForm { detail_type: kind.into(), detail: detail.into() }])
    }
}

/// The part of a `detail` that names its version.
#[derive(Deserialize)]
struct Versioned {
    metadata: Version,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// An event whose metadata is kept as it is.
#[derive(Serialize, Deserialize)]
struct Parts<D> {
    metadata: Map<String, Value>,
    data: D,
}

fn forms<'a, New: Event, Old: Event + From<New>>(
    kind: &'a str,
    detail: &'a str,
) -> Result<Vec<PublishedForm<'a>>, serde_json::Error> {
    let Versioned { metadata: Version { version } } = serde_json::from_str(detail)?;
    let mut forms =
        vec![PublishedForm { detail_type: detail_type(kind, version), detail: detail.into() }];
    if version == New::VERSION {
        let Parts { mut metadata, data } = serde_json::from_str::<Parts<New>>(detail)?;
        metadata.insert("version".to_owned(), Old::VERSION.into());
        let converted = serde_json::to_string(&Parts { metadata, data: Old::from(data) })?;
        forms.push(PublishedForm {
            detail_type: detail_type(kind, Old::VERSION),
            detail: converted.into(),
        });
    }
    Ok(forms)
}

/// Returns the `detail-type` of a version.
fn detail_type(kind: &str, version: u32) -> Cow<'_, str> {
    if version == 1 { kind.into() } else { format!("{kind}.v{version}").into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn golden(name: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
        let text = std::fs::read_to_string(format!("{folder}/{name}.json")).expect(name);
        serde_json::from_str::<Value>(&text).expect("JSON").to_string()
    }

    fn forms_of(kind: &str, detail: &str) -> Vec<(String, String)> {
        let forms = published_forms(kind, detail).expect("an event");
        forms
            .into_iter()
            .map(|form| (form.detail_type.into_owned(), form.detail.into_owned()))
            .collect()
    }

    #[test]
    fn an_event_with_one_version_is_published_unchanged() {
        let detail = golden("SiteActivated.v1");
        assert_eq!(
            forms_of("SiteActivated", &detail),
            [("SiteActivated".to_owned(), detail.clone())]
        );
        let forms = published_forms("SiteActivated", &detail).expect("an event");
        assert!(matches!(forms[0].detail, Cow::Borrowed(_)), "the detail is copied");
    }

    #[test]
    fn an_event_of_another_system_is_published_unchanged() {
        for detail in ["{\"data\":  1}", "not JSON"] {
            let forms = forms_of("CalibrationDone", detail);
            assert_eq!(forms, [("CalibrationDone".to_owned(), detail.to_owned())]);
        }
    }

    #[test]
    fn version_2_is_published_in_both_versions() {
        let detail = golden("AlertingConfigured.v2");
        let forms = forms_of("AlertingConfigured", &detail);
        let [(new_type, new), (old_type, old)] = &forms[..] else { panic!("{forms:?}") };
        assert_eq!((new_type.as_str(), new), ("AlertingConfigured.v2", &detail));
        assert_eq!(old_type, "AlertingConfigured");
        let (new, old): (Value, Value) =
            (serde_json::from_str(new).unwrap(), serde_json::from_str(old).unwrap());
        let site = &new["data"]["siteId"];
        assert_eq!(old["data"], json!({ "siteId": site, "rules": 2 }));
        let mut metadata = new["metadata"].clone();
        metadata["version"] = json!(1);
        assert_eq!(old["metadata"], metadata);
    }

    #[test]
    fn metadata_of_a_later_release_is_kept_in_every_form() {
        let mut detail: Value = serde_json::from_str(&golden("AlertingConfigured.v2")).unwrap();
        detail["metadata"]["traceId"] = json!("a later release");
        for (name, form) in forms_of("AlertingConfigured", &detail.to_string()) {
            let form: Value = serde_json::from_str(&form).unwrap();
            assert_eq!(form["metadata"]["traceId"], json!("a later release"), "{name}");
        }
    }

    #[test]
    fn a_row_in_version_1_is_published_only_in_version_1() {
        let detail = golden("AlertingConfigured.v1");
        let forms = forms_of("AlertingConfigured", &detail);
        assert_eq!(forms, [("AlertingConfigured".to_owned(), detail)]);
    }

    #[test]
    fn a_row_of_a_later_release_is_published_only_in_its_version() {
        let mut detail: Value = serde_json::from_str(&golden("AlertingConfigured.v2")).unwrap();
        detail["metadata"]["version"] = json!(3);
        let detail = detail.to_string();
        let forms = forms_of("AlertingConfigured", &detail);
        assert_eq!(forms, [("AlertingConfigured.v3".to_owned(), detail)]);
    }

    #[test]
    fn an_event_that_does_not_match_its_version_is_an_error() {
        let mut detail: Value = serde_json::from_str(&golden("AlertingConfigured.v1")).unwrap();
        detail["metadata"]["version"] = json!(2);
        for detail in [detail.to_string(), "{}".to_owned(), "not JSON".to_owned()] {
            assert!(published_forms("AlertingConfigured", &detail).is_err(), "{detail}");
        }
    }
}
