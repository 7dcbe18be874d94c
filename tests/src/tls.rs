//! Certificates for one test: an authority, a server and a client, as PEM files in a folder that goes with
//! the value.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// An authority with the certificates it signed. Two values never trust each other, so a second one makes the
/// wrong certificates that a test may need.
#[derive(Debug)]
pub struct Tls {
    dir: TempDir,
}

impl Tls {
    /// Makes an authority, a server certificate for these addresses, `127.0.0.1` and `localhost`, and a
    /// client's.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn generate(addresses: &[IpAddr]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&crate::leftovers::prefix()).tempdir()?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.distinguished_name.push(DnType::CommonName, "rollcall test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let ca = authority.self_signed(&key)?.pem();
        let issuer = Issuer::new(authority, key);

        let tls = Self { dir };
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        names.extend(addresses.iter().map(IpAddr::to_string));
        tls.sign("server", names, ExtendedKeyUsagePurpose::ServerAuth, &ca, &issuer)?;
        tls.sign("client", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, &ca, &issuer)?;
        Ok(tls)
    }

    fn sign(
        &self,
        who: &str,
        names: Vec<String>,
        purpose: ExtendedKeyUsagePurpose,
        ca: &str,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<()> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, format!("rollcall-test-{who}"));
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, issuer)?;
        let folder = self.dir.path().join(who);
        fs::create_dir(&folder)?;
        for (name, text) in
            [("ca.pem", ca), ("cert.pem", &certificate.pem()), ("key.pem", &key.serialize_pem())]
        {
            fs::write(folder.join(name), text)
                .with_context(|| format!("cannot write {name} of the {who}"))?;
        }
        Ok(())
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.client_dir().join("ca.pem")
    }

    /// The server's certificate and key.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        let folder = self.dir.path().join("server");
        (folder.join("cert.pem"), folder.join("key.pem"))
    }

    /// The client's certificate and key; its common name is `rollcall-test-client`.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.client_dir().join("cert.pem"), self.client_dir().join("key.pem"))
    }

    /// A folder with `ca.pem`, `cert.pem` and `key.pem` of the client: what DOCKER_CERT_PATH wants.
    pub fn client_dir(&self) -> PathBuf {
        self.dir.path().join("client")
    }

    /// The folder with all of it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}
