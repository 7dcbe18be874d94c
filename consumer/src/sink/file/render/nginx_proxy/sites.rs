//! Which virtual hosts come of what all containers declare.
//!
//! Containers that declare the same host and path share the load. Where they differ in how they are to be reached, the
//! oldest container is right, and the younger ones are left out: nobody takes a host over by declaring it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rollcall_shared::model::instance::Endpoint;

use super::{
    declaration::{Candidate, Declaration},
    host_name::HostName,
    path::Location,
    settings::{HttpsMethod, StrictTransport},
};

/// The virtual hosts.
#[derive(Debug, Default)]
pub(super) struct Sites<'c> {
    pub sites: BTreeMap<&'c HostName, Site<'c>>,
    /// How many containers are served.
    pub served: usize,
    /// What cannot be served as it was declared.
    pub left_out: Vec<String>,
}

/// A virtual host.
#[derive(Debug, Default)]
pub(super) struct Site<'c> {
    pub places: BTreeMap<&'c Location, Place<'c>>,
    pub cert_name: Choice<'c, &'c str>,
    pub https_method: Choice<'c, HttpsMethod>,
    pub hsts: Choice<'c, &'c StrictTransport>,
}

/// A path of a virtual host.
#[derive(Debug)]
pub(super) struct Place<'c> {
    /// How its servers are reached: as the oldest declares it.
    pub declaration: &'c Declaration,
    oldest: &'c Candidate,
    /// Whether any of its containers asks for internal clients only.
    pub is_internal: bool,
    /// Its servers and their weights.
    pub servers: BTreeMap<&'c Endpoint, u16>,
}

/// A setting of a host that several containers may declare: the oldest that does is right.
#[derive(Debug)]
pub(super) struct Choice<'c, T>(Option<(T, &'c Candidate)>);

impl<T> Default for Choice<'_, T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'c, T: Copy + PartialEq> Choice<'c, T> {
    pub fn get(&self) -> Option<T> {
        self.0.map(|(value, _)| value)
    }

    /// Takes the value if it is the first. Gives whose value stands against it.
    fn offer(&mut self, value: Option<T>, by: &'c Candidate) -> Option<&'c Candidate> {
        let value = value?;
        let (chosen, chooser) = *self.0.get_or_insert((value, by));
        (chosen != value).then_some(chooser)
    }
}

/// A container that is served, by the one of its instances that it means.
#[derive(Debug, Clone, Copy)]
struct Member<'c> {
    candidate: &'c Candidate,
    declaration: &'c Declaration,
}

impl<'c> Sites<'c> {
    /// Of all instances whose containers declare hosts.
    pub fn of(candidates: impl IntoIterator<Item = &'c Candidate>) -> Self {
        let mut containers: BTreeMap<_, Vec<&Candidate>> = BTreeMap::new();
        for candidate in candidates {
            let container = (candidate.started_at, &candidate.id.node, candidate.id.container);
            containers.entry(container).or_default().push(candidate);
        }
        let mut sites = Self::default();
        // By age; of the same age, by node and ID.
        for instances in containers.into_values() {
            sites.admit(&instances);
        }
        let mut seen = HashSet::new();
        sites.left_out.retain(|left_out| seen.insert(left_out.clone()));
        sites
    }

    /// Takes in a container by its instances.
    fn admit(&mut self, instances: &[&'c Candidate]) {
        let first = instances[0];
        let leave_out = |reason: &String| format!("{first}, whose {reason}");
        self.left_out.extend(first.flaws.iter().chain(first.declared.as_ref().err()).map(leave_out));
        let mut is_served = false;
        for declaration in first.declared.as_deref().unwrap_or_default() {
            match instance_of(instances, declaration.port) {
                Ok(candidate) => is_served |= self.join(Member { candidate, declaration }),
                Err(reason) => self.left_out.push(leave_out(&reason)),
            }
        }
        self.served += usize::from(is_served);
    }

    /// Gives whether the container has a server there.
    fn join(&mut self, member @ Member { candidate, declaration }: Member<'c>) -> bool {
        if let Some(reason) = candidate.unusable {
            self.left_out.push(format!("{candidate} at {}, {reason}", candidate.endpoint));
        }
        let names: BTreeSet<_> = declaration.names.iter().collect();
        let mut is_served = false;
        for name in names {
            let site = self.sites.entry(name).or_default();
            match site.join(member) {
                Ok(()) => is_served |= candidate.unusable.is_none(),
                Err(oldest) => {
                    let path = &declaration.path;
                    let left_out =
                        format!("{candidate} for {name} at {path}, which {oldest} serves otherwise");
                    self.left_out.push(left_out);
                    continue;
                }
            }
            for (setting, chooser) in site.choose(member) {
                let left_out = format!("{setting} of {candidate} for {name}, as {chooser} has another one");
                self.left_out.push(left_out);
            }
        }
        is_served
    }
}

impl<'c> Site<'c> {
    /// Adds the container's server, or gives the container that has the path and is reached otherwise.
    fn join(&mut self, Member { candidate, declaration }: Member<'c>) -> Result<(), &'c Candidate> {
        let place = self.places.entry(&declaration.path.location).or_insert_with(|| Place {
            declaration,
            oldest: candidate,
            is_internal: false,
            servers: BTreeMap::new(),
        });
        let how = |of: &Declaration| (of.proto, of.path.is_final, of.dest.clone(), of.root.clone());
        if how(place.declaration) != how(declaration) {
            return Err(place.oldest);
        }
        place.is_internal |= declaration.is_internal;
        if candidate.unusable.is_none() {
            place.servers.entry(&candidate.endpoint).or_insert(candidate.weight);
        }
        Ok(())
    }

    /// Takes in the container's settings for the host. Gives those that another one has decided.
    fn choose(
        &mut self,
        Member { candidate, declaration }: Member<'c>,
    ) -> Vec<(&'static str, &'c Candidate)> {
        let Declaration { cert_name, https_method, hsts, .. } = declaration;
        let decided = [
            ("CERT_NAME", self.cert_name.offer(cert_name.as_deref(), candidate)),
            ("HTTPS_METHOD", self.https_method.offer(*https_method, candidate)),
            ("HSTS", self.hsts.offer(hsts.as_ref(), candidate)),
        ];
        decided.into_iter().filter_map(|(setting, chooser)| Some((setting, chooser?))).collect()
    }
}

/// The instance that the container means: that of its `VIRTUAL_PORT`, or the only one, or that of port 80.
fn instance_of<'c>(instances: &[&'c Candidate], port: Option<u16>) -> Result<&'c Candidate, String> {
    let at = |port: u16| instances.iter().copied().find(|candidate| candidate.id.port == port);
    let ports =
        || instances.iter().map(|candidate| candidate.id.port.to_string()).collect::<Vec<_>>().join(", ");
    match (port, instances) {
        (Some(port), _) => at(port)
            .ok_or_else(|| format!("VIRTUAL_PORT is {port}: expected a registered one, of {}", ports())),
        (None, [only]) => Ok(only),
        (None, _) => at(80).ok_or_else(|| format!("VIRTUAL_PORT is not given: expected one of {}", ports())),
    }
}
