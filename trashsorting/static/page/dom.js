// The smallest things that every part of the page needs.
export const byId = (id) => document.getElementById(id);
export const settings = JSON.parse(byId("settings").textContent);  // A language, the names of all, limits, what there is.
export const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// What the phone remembers for the next visit. Some browsers forbid it; then it is asked again.
export function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* See above. */ }
}

export function recall(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

export function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  byId("spoken").append(line);
  while (byId("spoken").childElementCount > 20) byId("spoken").firstElementChild.remove();
}

export function element(name, className, text) {
  const created = document.createElement(name);
  created.className = className;
  if (text !== undefined) created.textContent = text;
  return created;
}
