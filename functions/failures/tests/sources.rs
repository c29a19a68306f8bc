//! The sources that are declared in code are those of the template and of the documentation.

use std::{collections::BTreeSet, fs};

use failures::sources::SOURCES;
use testkit::template::{Template, root};

#[test]
fn the_sources_are_those_of_the_template() {
    let template = Template::read();
    let variables = &template.properties("RecordFailureFunction")["Environment"]["Variables"];
    let parts = variables["SOURCES"].to_string();
    let of_template: BTreeSet<_> =
        parts.split(['"', ',']).filter_map(|part| Some(part.split_once('=')?.1)).collect();
    assert_eq!(of_template, BTreeSet::from(SOURCES), "{parts}");
}

#[test]
fn the_documentation_names_every_source() {
    let docs = fs::read_to_string(root().join("docs/operations.md")).expect("the documentation");
    let begun = docs.find("| source | what failed |").expect("the table of sources");
    let table: String = docs[begun..].lines().take_while(|line| line.starts_with('|')).collect();
    for source in SOURCES {
        assert!(table.contains(source), "{source} is not in the table of docs/operations.md");
    }
}
