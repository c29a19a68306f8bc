//! Tests that the sources in the code are those of the template and of the documentation.

use std::{collections::BTreeSet, fs};

use contracts::names::SITE_TEARDOWN;
use ledger::sources::{known, workers};
use testkit::template::{Template, root};

/// Converts a logical id such as `ImportSiteFunction` to `import-site`.
fn kebab(logical: &str) -> String {
    let name = logical.strip_suffix("Function").expect("a function");
    let letters = name.chars().map(|letter| match letter {
        'A'..='Z' => format!("-{}", letter.to_ascii_lowercase()),
        _ => letter.to_string(),
    });
    letters.collect::<String>().trim_start_matches('-').to_owned()
}

#[test]
fn each_function_of_the_template_whose_work_can_fail_permanently_is_a_source() {
    let template = Template::read();
    let mut expected = BTreeSet::from([SITE_TEARDOWN.to_owned()]);
    for (id, function) in template.resources("AWS::Serverless::Function") {
        if function["Properties"]["EventInvokeConfig"].is_object() {
            expected.insert(kebab(id));
        }
    }
    for mapping in template.resources("AWS::Lambda::EventSourceMapping").into_values() {
        let function = mapping["Properties"]["FunctionName"].as_str().expect("an alias");
        expected.insert(kebab(function.strip_suffix(".Alias").expect("an alias")));
    }
    expected.remove("record-failure");
    let workers: BTreeSet<_> = workers().into_iter().map(str::to_owned).collect();
    assert_eq!(workers, expected);
}

#[test]
fn the_documentation_names_every_source() {
    let docs = fs::read_to_string(root().join("docs/operations.md")).expect("the documentation");
    let start = docs.find("| source | what failed |").expect("the table of sources");
    let table: String = docs[start..].lines().take_while(|line| line.starts_with('|')).collect();
    for source in known() {
        assert!(table.contains(source), "{source} is not in the table of docs/operations.md");
    }
}
