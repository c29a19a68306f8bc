//! Tests how the tests read the templates: a fixed name of another service's resource is read as a reference to
//! it.

use serde_json::json;
use testkit::template::{Template, kebab};

#[test]
fn names_of_other_services_are_read_as_references() {
    let template = Template::read();
    let function = template.properties("ReserveKitsFunction");
    let statements = &function["Policies"][0]["Statement"];
    assert_eq!(statements[0]["Resource"], "InventoryTable.Arn", "a resource of its own service");
    assert_eq!(statements[1]["Resource"], "EventsTable.Arn");
    assert_eq!(function["Environment"]["Variables"]["EVENTS_TABLE"], "EventsTable");

    let machine = template.properties("SiteOnboarding");
    let given = &machine["DefinitionSubstitutions"];
    assert_eq!(given["ReserveKitsFunctionArn"], "ReserveKitsFunction.Alias");
    assert_eq!(given["InitializeSubscriptionQueueUrl"], "InitializeSubscriptionQueue");

    let billing = template.properties("InitializeSubscriptionFunction");
    assert_eq!(billing["Environment"]["Variables"]["SITE_ONBOARDING_ARN"], "SiteOnboarding");
    let executions = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:execution:${SiteOnboarding.Name}:*";
    let statements = billing["Policies"][0]["Statement"].as_array().expect("statements");
    assert!(statements.iter().any(|it| it["Resource"] == executions), "{statements:?}");

    let mapping = template.properties("DetectBreachesMapping");
    assert_eq!(mapping["EventSourceArn"], "ReadingsStream.Arn");
    assert_eq!(mapping["DestinationConfig"]["OnFailure"]["Destination"], "FailuresBucket.Arn");
    let mapping = template.properties("SitesFailuresMapping");
    assert_eq!(mapping["FunctionName"], "RecordFailureFunction.Alias");
    let alarm = template.properties("ReadingsTableThrottlesAlarm");
    assert_eq!(alarm["AlarmActions"], json!(["OnCallTopic"]));
}

#[test]
fn fixed_names_do_not_change() {
    let template = Template::read();
    for (id, name) in
        [("EventsTable", "events"), ("EventBus", "events"), ("OnCallTopic", "on-call")]
    {
        assert_eq!(template.fixed_name(id), Some(name), "{id}");
    }
    for id in template.functions() {
        let function = format!("{id}Function");
        assert_eq!(template.fixed_name(&function), Some(kebab(id).as_str()), "{function}");
    }
    assert_eq!(template.fixed_name("PagingSecret"), None);
}
