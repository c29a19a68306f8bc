//! Lists the stacks of the environment and their resources with CloudFormation.

use std::collections::BTreeMap;

use aws_sdk_cloudformation::types::{ResourceStatus, StackResourceSummary};
use contracts::names::SERVICES;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Check, copy_error};
use crate::{
    error::{CliError, aws},
    stack::{DEPLOYMENT_DOCS, Deployment, Stack, describe, does_not_exist},
};

/// The maximum number of concurrent calls.
const MAX_CONCURRENT_CALLS: usize = 8;

/// The resources of all stacks of the environment.
#[derive(Debug)]
pub struct Resources(Result<StackResources, CliError>);

#[derive(Debug)]
struct StackResources {
    /// The name and status of the root stack, if there is one.
    root: Option<(String, String)>,
    services: Vec<ServiceStack>,
    /// The physical ids, by type and logical id. Logical ids are unique across the stacks.
    resources: BTreeMap<String, BTreeMap<String, String>>,
}

/// The stack of a service.
#[derive(Debug)]
struct ServiceStack {
    service: &'static str,
    /// The stack's name or ARN. If the root stack has no stack for the service: the root stack's name.
    stack: String,
    /// The status of the stack's last deployment. `None` if there is no such stack.
    status: Option<String>,
}

impl Resources {
    /// Lists the resources of all stacks.
    pub async fn load(stack: &Stack) -> Self {
        Self(list(stack).await)
    }

    /// Returns the resources of a type, for example `AWS::SQS::Queue`: logical id and physical id.
    ///
    /// # Errors
    /// If the resources could not be listed.
    pub fn of_type(&self, kind: &str) -> Result<Vec<(String, String)>, CliError> {
        let all = &self.0.as_ref().map_err(copy_error)?.resources;
        Ok(all.get(kind).into_iter().flatten().map(|(a, b)| (a.clone(), b.clone())).collect())
    }

    /// Reads each resource of a type, several concurrently. The result is in the order of the logical ids.
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
            .buffered(MAX_CONCURRENT_CALLS)
            .try_collect()
            .await
    }

    /// Checks that every service has a stack, and that the last deployment of each stack succeeded.
    ///
    /// # Errors
    /// If the stacks could not be listed.
    pub fn check(&self) -> Result<Check, CliError> {
        let StackResources { root, services, .. } = self.0.as_ref().map_err(copy_error)?;
        let missing: Vec<_> = services.iter().filter(|it| it.status.is_none()).collect();
        let root_stack = root.iter().map(|(name, status)| (name.as_str(), status.as_str()));
        let service_stacks =
            services.iter().filter_map(|it| Some((it.stack.as_str(), it.status.as_deref()?)));
        let failed: Vec<_> =
            root_stack.chain(service_stacks).filter(|(_, status)| !is_deployed(status)).collect();
        let details = missing.iter().map(|it| match root {
            Some((name, _)) => {
                format!("{}: the root stack {name} has no nested stack for it", it.service)
            }
            None => format!("{}: there is no stack {}", it.service, it.stack),
        });
        let details = details.chain(failed.iter().map(|(stack, status)| {
            format!("{}: the status of the last deployment is {status}", stack_name(stack))
        }));
        let details: Vec<_> = details.collect();
        Ok(match (&missing[..], &failed[..]) {
            ([], []) => {
                let status = root.as_ref().map_or("deployed", |(_, status)| status.as_str());
                Check::good(
                    "stack",
                    format!("{status}, a stack for each of {} services", services.len()),
                )
            }
            ([], [(first, _), ..]) => {
                let next = format!(
                    "aws cloudformation describe-stack-events --stack-name {first} --max-items 20"
                );
                let summary = match failed.len() {
                    1 => "the last deployment of a stack failed or is in progress".to_owned(),
                    count => {
                        format!("the last deployments of {count} stacks failed or are in progress")
                    }
                };
                Check::problem("stack", summary, next).with(details)
            }
            (missing, _) => {
                let names: Vec<_> = missing.iter().map(|it| it.service).collect();
                let summary =
                    format!("{} of {} services have no stack", names.len(), services.len());
                let next = format!("deploy {}: {DEPLOYMENT_DOCS}", names.join(", "));
                Check::problem("stack", summary, next).with(details)
            }
        })
    }
}

/// Returns whether a status is that of a stack whose last deployment succeeded.
fn is_deployed(status: &str) -> bool {
    matches!(status, "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "IMPORT_COMPLETE")
}

/// Returns the name in a stack's ARN, or the name itself.
fn stack_name(stack: &str) -> &str {
    stack.split_once(":stack/").and_then(|(_, rest)| rest.split('/').next()).unwrap_or(stack)
}

async fn list(stack: &Stack) -> Result<StackResources, CliError> {
    let (root, services, own) = match stack.deployment() {
        Deployment::Root { status } => {
            let own = resources_of(stack, stack.name()).await?.unwrap_or_default();
            let services = SERVICES.map(|service| nested(stack, &own, service)).into();
            (Some((stack.name().to_owned(), status.clone())), services, own)
        }
        Deployment::PerService => {
            let services = stream::iter(SERVICES)
                .map(|service| async move {
                    let name = stack.named(service);
                    let found = describe(stack.cloudformation(), &name).await?;
                    let status = found.map(|found| match found.stack_status() {
                        Some(status) => status.as_str().to_owned(),
                        None => "without a status".to_owned(),
                    });
                    Ok::<_, CliError>(ServiceStack { service, stack: name, status })
                })
                .buffered(MAX_CONCURRENT_CALLS)
                .try_collect()
                .await?;
            (None, services, Vec::new())
        }
    };
    let mut services: Vec<ServiceStack> = services;
    let listed: Vec<_> = stream::iter(&services)
        .map(|it| async move {
            match &it.status {
                Some(_) => resources_of(stack, &it.stack).await,
                None => Ok(None),
            }
        })
        .buffered(MAX_CONCURRENT_CALLS)
        .try_collect()
        .await?;
    let mut resources: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for it in own.iter().chain(listed.iter().flatten().flatten()) {
        if let (Some(kind), Some(logical), Some(physical)) =
            (it.resource_type(), it.logical_resource_id(), it.physical_resource_id())
        {
            let ids = resources.entry(kind.to_owned()).or_default();
            ids.insert(logical.to_owned(), physical.to_owned());
        }
    }
    // A stack that was deleted outside of its root stack is still listed as a resource of the root stack.
    for (service, listed) in services.iter_mut().zip(&listed) {
        if listed.as_ref().is_none_or(Vec::is_empty) {
            service.status = None;
        }
    }
    Ok(StackResources { root, services, resources })
}

/// Finds the stack of a service among the root stack's resources. The logical id of the resource begins with the
/// service's name.
fn nested(stack: &Stack, own: &[StackResourceSummary], service: &'static str) -> ServiceStack {
    let found = own.iter().find(|it| {
        let is_stack = it.resource_type() == Some("AWS::CloudFormation::Stack");
        let logical = it.logical_resource_id().unwrap_or_default().to_lowercase();
        is_stack && logical.starts_with(service)
    });
    let found = found.and_then(|it| {
        let status = it.resource_status().map_or("without a status", ResourceStatus::as_str);
        Some((it.physical_resource_id()?.to_owned(), status.to_owned()))
    });
    match found {
        Some((stack, status)) => ServiceStack { service, stack, status: Some(status) },
        None => ServiceStack { service, stack: stack.name().to_owned(), status: None },
    }
}

/// Returns the resources of a stack that were not deleted. Returns `None` if there is no such stack.
async fn resources_of(
    stack: &Stack,
    name: &str,
) -> Result<Option<Vec<StackResourceSummary>>, CliError> {
    let listing = stack.cloudformation().list_stack_resources().stack_name(name);
    let mut found = listing.into_paginator().items().send();
    let mut resources = Vec::new();
    while let Some(resource) = found.next().await {
        match resource {
            Ok(it) if it.resource_status() == Some(&ResourceStatus::DeleteComplete) => {}
            Ok(it) => resources.push(it),
            Err(error) if does_not_exist(&error) => return Ok(None),
            Err(error) => return Err(aws("the stacks' resources can't be listed")(error)),
        }
    }
    Ok(Some(resources))
}
