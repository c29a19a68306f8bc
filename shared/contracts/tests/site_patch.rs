//! The body of `PATCH /sites/{siteId}`: what it changes, its schema and its error messages.

use contracts::{
    Contact, Location,
    input::{self, FieldError},
    site_patch::{MAX_EMAIL, MAX_PHONE, SITE_PATCH, SitePatch},
};
use serde_json::{Value, json};
use testkit::schema::{InvalidDocument, Schema};

const LOCATION: Location = Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 };

fn contact() -> Contact {
    Contact {
        name: Some("Jane Roe".to_owned()),
        email: Some("jane@example.org".to_owned()),
        phone: Some("+1 (303) 555-0100".to_owned()),
    }
}

fn read(body: &Value) -> Result<SitePatch, Vec<FieldError>> {
    input::read(&body.to_string())
}

fn errors(body: &Value) -> Vec<String> {
    read(body).expect_err("wrong input").iter().map(FieldError::to_string).collect()
}

/// Returns the contact after a patch of `contact()`.
fn contact_after(patch: &Value) -> Option<Contact> {
    read(&json!({ "contact": patch })).expect("a patch").contact_after(Some(&contact()))
}

#[test]
fn a_missing_field_stays_and_null_removes_an_optional_one() {
    let nothing = read(&json!({})).expect("a patch");
    assert_eq!(nothing, SitePatch::default());
    assert_eq!(nothing.contact_after(Some(&contact())), Some(contact()));
    assert_eq!(nothing.contact_after(None), None);
    assert_eq!(nothing.location_after(LOCATION), LOCATION);

    assert_eq!(contact_after(&json!({})), Some(contact()));
    let without_phone = Contact { phone: None, ..contact() };
    assert_eq!(contact_after(&json!({ "phone": null })), Some(without_phone));
    let renamed = Contact { name: Some("John Doe".to_owned()), ..contact() };
    assert_eq!(contact_after(&json!({ "name": " John Doe " })), Some(renamed));
    assert_eq!(contact_after(&Value::Null), None);
    let all_removed = json!({ "name": null, "email": null, "phone": null });
    assert_eq!(contact_after(&all_removed), None, "a contact without fields");

    let new = read(&json!({ "contact": { "email": "a@b" } })).expect("a patch").contact_after(None);
    assert_eq!(new, Some(Contact { email: Some("a@b".to_owned()), ..Contact::default() }));
    let moved = read(&json!({ "location": { "elevationM": 2320 } })).expect("a patch");
    assert_eq!(moved.location_after(LOCATION), Location { elevation_m: 2320.0, ..LOCATION });
}

#[test]
fn required_values_can_not_be_removed() {
    let body = json!({ "name": null, "location": { "latitude": null, "longitude": 181 }, "status": "ACTIVE" });
    assert_eq!(
        errors(&body),
        [
            "status: is not known; the fields are name, contact, location",
            "name: is null; give a string of 1 to 200 characters",
            "location.latitude: is null; give degrees north from -90 to 90",
            "location.longitude: is 181; give degrees east from -180 to 180",
        ]
    );
    assert_eq!(
        errors(&json!({ "utcOffset": "+01:00" })),
        [
            "utcOffset: can't be changed, because bundles that are sent again would get other times; leave it out. To correct stored readings, send a revision that replaces their range"
        ]
    );
    assert_eq!(
        errors(&json!({ "location": null })),
        ["location: is null; give an object with the fields latitude, longitude, elevationM"]
    );
    assert_eq!(
        errors(&Value::Null),
        ["is null; give an object with the fields name, contact, location"]
    );
}

#[test]
fn messages_about_a_contact_do_not_quote_it() {
    const MARKER: &str = "jane.roe";
    for (field, value) in [
        ("email", MARKER.to_owned()),
        ("email", format!("{MARKER}@")),
        ("email", format!("@{MARKER}")),
        ("email", format!("{MARKER}@a@b")),
        ("email", format!("{MARKER} @example.org")),
        ("email", format!("{MARKER}@example.org\u{200b}")),
        ("email", format!("{MARKER}@{}", "a".repeat(MAX_EMAIL))),
        ("phone", format!("+1 303 555 0100 {MARKER}")),
        ("phone", "+".to_owned()),
        ("phone", String::new()),
        ("phone", "1".repeat(MAX_PHONE + 1)),
        ("name", format!("{MARKER}\u{202e}")),
        ("name", " ".to_owned()),
    ] {
        let errors = errors(&json!({ "contact": { field: value } }));
        assert_eq!(errors.len(), 1, "{field} {value:?}: {errors:?}");
        assert!(errors[0].starts_with(&format!("contact.{field}: ")), "{errors:?}");
        assert!(!errors[0].contains(MARKER), "{errors:?}");
    }
    for (field, value) in [
        ("email", "a@b".to_owned()),
        ("email", format!("{}@b", "a".repeat(MAX_EMAIL - 2))),
        ("email", "m\u{fc}ller+station@b\u{fc}ro.example".to_owned()),
        ("phone", "110".to_owned()),
        ("phone", "+49 (0)30/555-0100 #12".to_owned()),
    ] {
        assert!(read(&json!({ "contact": { field: &value } })).is_ok(), "{field} {value:?}");
    }
}

#[test]
fn debug_output_hides_a_contact() {
    let patch = read(&json!({ "name": "Alamosa", "contact": { "name": "Jane Roe" } }));
    for shown in [format!("{:?}", contact()), format!("{:?}", patch.expect("a patch"))] {
        assert!(shown.contains("***") && !shown.contains("Jane"), "{shown}");
    }
}

#[test]
fn the_schema_and_the_reader_accept_the_same_documents() {
    let schema = Schema::published(SITE_PATCH);
    let all = json!({
        "name": "Alamosa",
        "contact": { "name": "Jane Roe", "email": "jane@example.org", "phone": "+1 303 555 0100" },
        "location": { "latitude": 1.5, "longitude": 2.5, "elevationM": 3.5 },
    });
    for valid in [
        all.clone(),
        json!({}),
        json!({ "contact": null }),
        json!({ "contact": {}, "location": {} }),
        json!({ "contact": { "name": null, "email": null, "phone": null } }),
    ] {
        assert!(schema.accepts(&valid) && read(&valid).is_ok(), "{valid}");
    }
    for invalid in [json!({ "name": null }), json!({ "location": null }), json!([])] {
        assert!(!schema.accepts(&invalid) && read(&invalid).is_err(), "{invalid}");
    }
    let invalid = schema.invalid_documents(&all);
    assert!(invalid.len() > 40, "{} documents", invalid.len());
    for InvalidDocument { field, what, document } in invalid {
        let errors = read(&document).expect_err(&what);
        assert!(errors.iter().any(|it| it.field == field), "{what} of {field}: {errors:?}");
    }
}
