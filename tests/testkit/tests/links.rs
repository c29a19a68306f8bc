//! What fieldctl links: shared crates, but no function and no Lambda runtime.

use std::process::Command;

#[test]
fn fieldctl_links_no_function_and_no_lambda_runtime() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "fieldctl", "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let packages: Vec<_> = text.lines().collect();
    assert!(packages.iter().any(|it| it.starts_with("store v")), "{text}");
    let unwanted: Vec<_> = packages
        .iter()
        .filter(|it| it.starts_with("lambda_runtime ") || it.contains("/functions/"))
        .collect();
    assert!(unwanted.is_empty(), "fieldctl links {unwanted:?}; move what it needs to shared/");
}
