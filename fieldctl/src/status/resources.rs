//! The resources of the stack, as CloudFormation lists them.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Check, again};
use crate::{
    error::{CliError, aws},
    stack::Stack,
};

/// Calls at a time.
const AT_ONCE: usize = 8;

/// Physical ids by type and logical id.
#[derive(Debug)]
pub struct Resources(Result<BTreeMap<String, BTreeMap<String, String>>, CliError>);

impl Resources {
    /// Lists them.
    pub async fn of(stack: &Stack) -> Self {
        Self(stack.resources().await)
    }

    /// Those of a type, for example `AWS::SQS::Queue`: logical id, physical id.
    ///
    /// # Errors
    /// If the resources could not be listed.
    pub fn of_type(&self, kind: &str) -> Result<Vec<(String, String)>, CliError> {
        let all = self.0.as_ref().map_err(again)?;
        Ok(all.get(kind).into_iter().flatten().map(|(a, b)| (a.clone(), b.clone())).collect())
    }
}

impl Resources {
    /// Reads each resource of a type, some at a time; in the order of their logical ids.
    ///
    /// # Errors
    /// If the resources could not be listed, or one could not be read.
    pub async fn read_each<T>(
        &self,
        kind: &str,
        read: impl AsyncFn(String, String) -> Result<T, CliError>,
    ) -> Result<Vec<T>, CliError> {
        stream::iter(self.of_type(kind)?)
            .map(|(name, physical)| read(name, physical))
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }
}

impl Stack {
    /// Every resource of the template: physical ids by type and logical id.
    pub async fn resources(&self) -> Result<BTreeMap<String, BTreeMap<String, String>>, CliError> {
        let listing = self.cloudformation().list_stack_resources().stack_name(self.name());
        let mut found = listing.into_paginator().items().send();
        let mut resources: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        while let Some(resource) = found.next().await {
            let resource = resource.map_err(aws("the stack's resources can't be listed"))?;
            if let (Some(kind), Some(logical), Some(physical)) = (
                resource.resource_type(),
                resource.logical_resource_id(),
                resource.physical_resource_id(),
            ) {
                resources
                    .entry(kind.to_owned())
                    .or_default()
                    .insert(logical.to_owned(), physical.to_owned());
            }
        }
        Ok(resources)
    }
}

/// Checks that the last deployment went through.
pub async fn check(stack: &Stack) -> Result<Check, CliError> {
    let status = stack.deployment().await?;
    Ok(if status.ends_with("_COMPLETE") && !status.contains("ROLLBACK") {
        Check::good("stack", status)
    } else {
        let next = format!(
            "aws cloudformation describe-stack-events --stack-name {} --max-items 20",
            stack.name()
        );
        Check::problem("stack", format!("the last deployment is {status}"), next)
    })
}
