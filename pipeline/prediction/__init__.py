"""From images, video or a frame set to joints: pieces of work, crops, poses, tables, overlays."""
