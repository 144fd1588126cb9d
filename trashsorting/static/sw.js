// The page without a network: its files are kept as one version, and a new version replaces all of them at once.
const VERSION = "{version}";
const FILES = {files};
const CACHE = "page-" + VERSION;
const kept = new Set(FILES.map((file) => new URL(file, self.registration.scope).href));

self.addEventListener("install", (event) => event.waitUntil((async () => {
  const cache = await caches.open(CACHE);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
  await self.skipWaiting();
})()));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  const old = (await caches.keys()).filter((name) => name.startsWith("page-") && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
})()));

// Only the page's own files. What asks the service goes to the network.
self.addEventListener("fetch", (event) => {
  const url = event.request.url.split(/[?#]/)[0];
  if (event.request.method !== "GET" || !kept.has(url)) return;
  event.respondWith((async () => {
    const cache = await caches.open(CACHE);
    return await cache.match(url, { ignoreVary: true }) ?? fetch(event.request);
  })());
});
