//! Images, and the one that the kubelet makes by itself.

use bollard::Docker;
use bollard::models::ImageInspect;
use bollard::query_parameters::{CreateImageOptions, ListImagesOptions};
use futures::TryStreamExt;

use super::super::{Error, Image, RegistryAuth, Result};
use super::failed;

/// The program of a sandbox, built with this crate.
const PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
/// The image of it: its version is ours, so that another program makes another image.
const PAUSE_REPOSITORY: &str = "skiff/pause";

/// Makes the sandboxes' image unless it is there; its name.
pub async fn ensure_pause(docker: &Docker) -> Result<String> {
    let tag = env!("CARGO_PKG_VERSION");
    let name = format!("{PAUSE_REPOSITORY}:{tag}");
    if inspect(docker, &name).await?.is_some() {
        return Ok(name);
    }
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(PAUSE.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    let unpacked = |e: std::io::Error| Error::Failed(format!("make an archive of the pause program: {e}"));
    archive.append_data(&mut header, "pause", PAUSE).map_err(unpacked)?;
    let archive = archive.into_inner().map_err(unpacked)?;
    let options = CreateImageOptions {
        from_src: Some("-".into()),
        repo: Some(PAUSE_REPOSITORY.into()),
        tag: Some(tag.into()),
        changes: vec![r#"ENTRYPOINT ["/pause"]"#.into()],
        ..CreateImageOptions::default()
    };
    let body = bollard::body_full(archive.into());
    docker.create_image(Some(options), Some(body), None).try_collect::<Vec<_>>().await.map_err(failed)?;
    Ok(name)
}

async fn inspect(docker: &Docker, name: &str) -> Result<Option<ImageInspect>> {
    match docker.inspect_image(name).await.map_err(failed) {
        Ok(image) => Ok(Some(image)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn view(image: ImageInspect) -> Image {
    let digests = image.repo_digests.unwrap_or_default();
    Image {
        id: image.id.unwrap_or_default(),
        names: digests.into_iter().chain(image.repo_tags.unwrap_or_default()).collect(),
        size: image.size.unwrap_or(0),
        user: image.config.and_then(|c| c.user).unwrap_or_default(),
    }
}

/// The image of that name.
pub async fn get(docker: &Docker, name: &str) -> Result<Option<Image>> {
    Ok(inspect(docker, name).await?.map(view))
}

/// All images that have a name.
pub async fn list(docker: &Docker) -> Result<Vec<Image>> {
    let images = docker.list_images(None::<ListImagesOptions>).await.map_err(failed)?;
    let named = |name: &String| !name.starts_with("<none>");
    let view = |image: bollard::models::ImageSummary| Image {
        id: image.id,
        names: image.repo_digests.into_iter().chain(image.repo_tags).filter(named).collect(),
        size: image.size,
        user: String::new(),
    };
    Ok(images.into_iter().map(view).collect())
}

/// Fetches an image from its registry.
pub async fn pull(docker: &Docker, name: &str, auth: Option<&RegistryAuth>) -> Result<Image> {
    let options = CreateImageOptions { from_image: Some(name.into()), ..CreateImageOptions::default() };
    let credentials = auth.map(|auth| bollard::auth::DockerCredentials {
        username: Some(auth.username.clone()),
        password: Some(auth.password.clone()),
        serveraddress: Some(auth.server.clone()),
        ..Default::default()
    });
    docker.create_image(Some(options), None, credentials).try_collect::<Vec<_>>().await.map_err(failed)?;
    get(docker, name).await?.ok_or_else(|| Error::NotFound(format!("image {name}")))
}
