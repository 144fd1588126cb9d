// What was taught, in the browser's own store: { name, added, sha256, measured, pictures: [{ picture, features, logits }] }.
// Where the browser keeps nothing, it stays until the page is left.
const memory = new Map();
export let keeps = true;

const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

// What does not fit on the disk is given up at the end of the transaction, after the request has succeeded.
const end = (transaction) => new Promise((resolve, reject) => {
  transaction.oncomplete = resolve;
  transaction.onabort = () => reject(transaction.error);
});

async function use(mode, work) {
  const opening = indexedDB.open("trashsorting", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("things", { keyPath: "name" });
  const database = await done(opening);
  try {
    const transaction = database.transaction("things", mode);
    const written = end(transaction);
    const request = work(transaction.objectStore("things"));
    await written;
    return request.result;
  } finally {
    database.close();
  }
}

// In the order in which they were taught.
export async function readThings() {
  let things = [];
  try {
    things = await use("readonly", (store) => store.getAll());
  } catch {
    keeps = false;
  }
  return [...things, ...memory.values()].sort((a, b) => a.added - b.added);
}

export async function keepThing(thing) {
  try {
    await use("readwrite", (store) => store.put(thing));
    navigator.storage?.persist?.().catch(() => { /* Then the browser may clear it when space is short. */ });
  } catch {
    keeps = false;
    memory.set(thing.name, thing);
  }
}

export async function forgetThing(name) {
  memory.delete(name);
  try {
    await use("readwrite", (store) => store.delete(name));
  } catch {
    keeps = false;
  }
}
